"""Settings: a class for every frontend, overrides, and recipes as JSON."""
