"""Modules that quantize."""
