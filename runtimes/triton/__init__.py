"""The integer dialect on a GPU: Triton kernels on PyTorch tensors (docs/triton.md).

    Program -> Plan, for one batch size: a tensor for every result, views where codes only seem
               to move, and a list of launches, one a layer
            -> the launches in order, on a GPU as one CUDA graph; or in Triton's interpreter,
               which runs the same kernels on a CPU

`kernels` has what runs on the device and `operators` what each operator of the dialect
launches. Torch and Triton are imported where a program is opened, not before.
"""
