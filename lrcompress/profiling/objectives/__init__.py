"""Divergences between outputs, one a file; the table of all of them is in `objective.py`."""
