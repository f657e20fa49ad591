"""Layers that compute a standard operation in their own way, turned into standard layers."""
