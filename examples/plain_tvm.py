"""A module of `qtool export --target tvm`, run by TVM alone: qtool need not be installed.

    python examples/plain_tvm.py model.so images.npy

`images.npy` holds an array of the shape and type that model.json names under "input"; the
output is printed as nested lists. Nothing here asks whether this machine's CPU is the one
that the module was compiled for ("target" in model.json): `qtool check` does.
"""

import sys

import numpy as np
import tvm
from tvm import relax

library = tvm.runtime.load_module(sys.argv[1])
machine = relax.VirtualMachine(library, tvm.cpu())
images = tvm.runtime.tensor(np.load(sys.argv[2]))
logits = machine["main"](images).numpy()
print(logits.tolist())
