"""Integer kernels for CPUs, generated as TIR functions: one for each specification."""
