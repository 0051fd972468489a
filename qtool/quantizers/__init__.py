"""Quantizers: functions from floats to a grid and back, with their published gradients."""
