"""Passes over the adaptive graph: bits resolved, weights as codes, a grid on every edge."""
