"""What a TVM module computes in which order: fusions, layouts, kernels, memory."""
