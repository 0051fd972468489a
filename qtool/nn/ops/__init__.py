"""Autograd functions: what quantizing modules compute."""
