"""Kernels for NVIDIA GPUs, as TIR with bound threads."""
