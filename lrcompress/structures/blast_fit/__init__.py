"""Fits of a BLAST weight: plain, weighted, and the published one for comparison."""
