"""One file a command: read artefacts, call one verb, write artefacts, hand back what to show."""
