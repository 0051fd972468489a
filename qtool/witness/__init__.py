"""The witness: what was written, compared with where it comes from.

Parity says that every runtime computes the integers of one file. Whether that file is right,
no runtime can say: all of them are given the same one. Its *origin* can, which is

    a run       the user's float network, and the network with its quantizers (`of_run`)
    a file      of another tool, which ONNX Runtime executes as it is (`of_file`)

Origin and artifact run on the same few images. `compare` holds what both know of against each
other, tensor by tensor: `record.WitnessRecord`. `verdict` says which tensors fell out.
"""
