"""TVM modules for CPUs: plan, kernels, vector units."""
