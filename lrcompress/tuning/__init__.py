"""Recovery by training: improve the weights of compressed layers without changing structures."""
