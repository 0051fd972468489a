"""Vector units: what kernels ask of a CPU, an instruction set a file."""
