"""Fits of a BLAST weight: plain, weighted, and the published method for comparison."""
