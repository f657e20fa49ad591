"""A small convolutional network for Fashion-MNIST."""
