"""One module per command: read artefacts, call the library, write artefacts, return results."""
