"""A network's forward pass: inputs, call, outputs, divergences, and the network's identity."""
