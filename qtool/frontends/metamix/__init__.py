"""MetaMix: one meta-state for all bits."""
