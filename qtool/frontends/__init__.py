"""Training methods, a module or package each: float networks become runs."""
