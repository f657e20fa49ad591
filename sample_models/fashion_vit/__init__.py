"""A small vision transformer for Fashion-MNIST."""
