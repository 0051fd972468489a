"""MEBQAT: bit-widths as tasks of meta-learning."""
