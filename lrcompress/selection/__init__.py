"""Selection among plans by the measured divergence of the compressed network."""
