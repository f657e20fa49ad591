"""Recovery by training: better weights in the same structures."""
