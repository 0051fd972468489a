"""Training kernels in C++, compiled for this machine when they are first needed."""
