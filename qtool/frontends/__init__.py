"""Training methods: each turns a recipe and data into a run directory."""
