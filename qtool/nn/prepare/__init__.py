"""Quantizers into a network: rewrites of its graph."""
