"""Runtimes: numpy arrays in, numpy arrays out; none of them needs torch."""

# name: what `qtool list` says
RUNTIMES = {
    "reference": "numpy, the definition of the integer dialect (qtool.core.numerics)",
    "ort": "ONNX Runtime, CPU, on model.onnx",
    "tvm": "TVM virtual machine, llvm, on model.so (extra: tvm)",
    "openvino": "OpenVINO, CPU, on model.onnx; not exact, used on request (extra: openvino)",
}
# Those that must agree to the last integer; `qtool check` uses them unless told otherwise.
EXACT = ("reference", "ort", "tvm")
