"""From run to file, and from file to graph."""
