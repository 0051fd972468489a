"""Refuse damaged ONNX files before any pass reads them, naming node or tensor.

`onnx.checker` sees to acyclic order, single assignment, known operators and attributes; ONNX's
shape inference to shapes. Neither checks the element types that operators allow, nor what the
numbers of a quantization grid mean. Here:

1. `storage`: opsets and domains that exist; all data inside the file; sizes that a computer
   holds.
2. `graph`: every operator known (`operators`), with element types as its schema allows them
   and grids that mean something (`grids`); biases as long as their layer has outputs.
"""
