"""The report of a run, as one JSON document and one self-contained page."""
