"""Quantized modules and the function that puts them into a user's model."""
