"""Bits for every layer under a budget: what may be chosen, what it costs, and who chooses."""
