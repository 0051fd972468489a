"""Runtimes: numpy arrays in, numpy arrays out; none of them needs torch."""
