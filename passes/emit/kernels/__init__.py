"""Integer kernels for CPUs, generated as TIR functions: one per specification, not per layer."""
