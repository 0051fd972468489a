"""Runtimes: numpy arrays in, numpy arrays out; none of them needs torch."""

# name: what `qtool list` says
RUNTIMES = {
    "reference": "numpy, the definition of the integer dialect (qtool.numerics)",
    "ort": "ONNX Runtime, CPU, on model.onnx",
    "tvm": "TVM virtual machine, llvm, on model.so (extra: tvm)",
}
