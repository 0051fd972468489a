"""TVM modules."""
