"""Layers of other people's making, turned into standard ones that compute the same."""
