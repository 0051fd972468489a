"""Checks of deployed files."""
