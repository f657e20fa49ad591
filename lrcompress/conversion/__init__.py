"""Conversion of custom layers that compute a standard operation into standard layers."""
