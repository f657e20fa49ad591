"""One forward pass of a network: inputs, call, outputs, divergences, and what identifies it."""
