"""Lowering: every operator that a grid closes becomes an integer operator."""
