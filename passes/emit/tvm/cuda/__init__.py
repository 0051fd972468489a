"""TVM modules for NVIDIA GPUs."""
