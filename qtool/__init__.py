"""qtool: train, search, compile and check integer convolutional networks."""

__version__ = "0.1.0"
