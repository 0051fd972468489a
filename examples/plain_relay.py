"""A file of `qtool export --target relay`, run by TVM 0.19 alone: qtool need not be installed.

    PYTHON examples/plain_relay.py model.relay.json images.npy

PYTHON is one that has TVM 0.19 or older; that of `qtool setup relay` will do. `images.npy`
holds one image, (1, channels, height, width), of the type that "facts" in the file name; the
output is printed as nested lists. Compiling takes up to a minute.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import tvm
from tvm import relay
from tvm.contrib import graph_executor

file = json.loads(Path(sys.argv[1]).read_text())
module = tvm.ir.load_json(json.dumps(file["main"]))
parameters = relay.load_param_dict(base64.b64decode(file["parameters"]))
with tvm.transform.PassContext(opt_level=3):
    library = relay.build(module, "llvm", params=parameters)
network = graph_executor.GraphModule(library["default"](tvm.cpu()))
network.run(**{file["facts"]["input_name"]: np.load(sys.argv[2])})
print(network.get_output(0).numpy().tolist())
