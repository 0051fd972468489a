"""What runs in Relay's environment: text to JSON, JSON to machine code, images to integers.

Started by `qtool.core.relay.process` as a script, isolated (``python -I``), so that it imports
nothing but the standard library, numpy and that environment's ``tvm``. It answers one message
after another until its input ends:

    length of the header, 8 bytes | header, JSON | blobs, as long as its "sizes" say

A request's "do" is a key of `Worker.commands`; an answer with "error" says in one line what
went wrong.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np

Header = dict[str, Any]
Blobs = Sequence[bytes]
Answer = tuple[Header, Blobs]
# TVM walks a network by recursion, an operator behind the other.
_STACK_BYTES = 512 << 20


def write_message(stream: IO[bytes], header: Header, blobs: Blobs = ()) -> None:
    """Write a message and flush it."""
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    stream.write(len(text).to_bytes(8, "little") + text)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[Header, list[bytes]] | None:
    """Return header and blobs of the next message; None at the end."""
    length = stream.read(8)
    if len(length) < 8:
        return None
    header: Header = json.loads(stream.read(int.from_bytes(length, "little")))
    return header, [stream.read(size) for size in header["sizes"]]


def described(array: Any) -> dict[str, Any]:
    """Return element type and shape of an array, as a header holds them."""
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def array_of(meta: dict[str, Any], blob: bytes) -> Any:
    """Return the array that `described` described."""
    return np.frombuffer(blob, meta["dtype"]).reshape(meta["shape"])


class Worker:
    """One network at most, compiled or loaded."""

    def __init__(self) -> None:
        import tvm
        from tvm import relay
        from tvm.contrib import cc, graph_executor
        from tvm.target import codegen

        self.tvm, self.relay, self.cc = tvm, relay, cc
        self.codegen, self.executor = codegen, graph_executor
        self.factory: Any = None
        self.graph: Any = None
        self.commands: dict[str, Callable[[Header, Blobs], Answer]] = {
            "emit": self.emit, "target": self.target, "build": self.build,
            "save": self.save, "load": self.load, "run": self.run, "time": self.time,
        }  # fmt: skip

    def emit(self, header: Header, blobs: Blobs) -> Answer:
        """Texts and parameters -> each text's module as JSON, after both round trips."""
        *texts, parameters = blobs
        given = self.relay.load_param_dict(bytearray(parameters))
        return {}, [self._json(text.decode(), given) for text in texts]

    def _json(self, text: str, given: dict[str, Any]) -> bytes:
        module = self._parsed(text)
        saved: str = self.tvm.ir.save_json(module)
        for what, other in (
            ("text", self._parsed(module.astext())), ("JSON", self.tvm.ir.load_json(saved)),
        ):  # fmt: skip
            if not self.tvm.ir.structural_equal(module, other, map_free_vars=True):
                raise ValueError(f"the module is read back from {what} as another one")
        for parameter in module["main"].params[1:]:
            if parameter.name_hint not in given:
                raise ValueError(f"parameter {parameter.name_hint} is missing")
            kind, array = parameter.checked_type, given[parameter.name_hint]
            if (kind.dtype, tuple(kind.concrete_shape)) != (array.dtype, tuple(array.shape)):
                raise ValueError(f"parameter {parameter.name_hint} is not {kind}")
        return saved.encode()

    def _parsed(self, text: str) -> Any:
        return self.relay.transform.InferType()(self.relay.parse(text))

    def target(self, header: Header, blobs: Blobs) -> Answer:
        """Name of a CPU, None for this one's -> TVM's target, and what this machine lacks.

        Of the features in "generated", all that code may use by itself.

        "unknown" and all "known" names where LLVM has no such CPU.
        """
        host = str(self.codegen.llvm_get_system_cpu())
        name = header["mcpu"] or host
        known = sorted(
            map(str, self.codegen.llvm_get_cpu_archlist(self.tvm.target.Target("llvm")))
        )
        if name not in known:
            return {"unknown": name, "known": known}, []
        machine = self.tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
        absent = {str(key) for key, has in machine.items() if not has}
        needed = self._features(name) & set(header["generated"])
        # What virtual machines hide of this machine's own CPU.
        masked = sorted(needed & absent) if header["mcpu"] is None else []
        without = {"mattr": [f"-{feature}" for feature in masked]} if masked else {}
        here = self._features(host) | {str(key) for key in machine}
        missing = sorted(needed - (here - absent) - set(masked))
        return {"target": {"kind": "llvm", "mcpu": name, **without}, "missing": missing}, []

    def _features(self, name: str) -> set[str]:
        target = self.tvm.target.Target({"kind": "llvm", "mcpu": name})
        return {str(feature) for feature in self.codegen.llvm_get_cpu_features(target)}

    def build(self, header: Header, blobs: Blobs) -> Answer:
        """Module as JSON, parameters -> machine code, in memory."""
        module = self.tvm.ir.load_json(blobs[0].decode())
        given = self.relay.load_param_dict(bytearray(blobs[1]))
        used = {parameter.name_hint for parameter in module["main"].params}
        target = self.tvm.target.Target(header["target"])
        with self.tvm.transform.PassContext(opt_level=3):
            self.factory = self.relay.build(
                module, target, params={n: v for n, v in given.items() if n in used}
            )
        return self._opened(self.factory.module)

    def save(self, header: Header, blobs: Blobs) -> Answer:
        """Write what was built as a shared library; "saved" is False without a linker."""
        if self.cc.get_cc() is None:
            return {"saved": False}, []
        self.factory.export_library(header["path"])
        return {"saved": True}, []

    def load(self, header: Header, blobs: Blobs) -> Answer:
        """Load what `save` wrote."""
        return self._opened(self.tvm.runtime.load_module(header["path"]))

    def _opened(self, module: Any) -> Answer:
        """Make an executor; return the tensors between kernels that are floats, by kernel."""
        self.graph = self.executor.GraphModule(module["default"](self.tvm.cpu()))
        content = json.loads(module["get_graph_json"]())
        results = {head[0] for head in content["heads"]}
        starts, kinds = content["node_row_ptr"], content["attrs"]["dltype"][1]
        floats = [
            node["attrs"]["func_name"]
            for index, node in enumerate(content["nodes"])
            if node["op"] == "tvm_op"
            and index not in results
            and any(
                kind.startswith("float") for kind in kinds[starts[index] : starts[index + 1]]
            )
        ]
        return {"floats": floats}, []

    def run(self, header: Header, blobs: Blobs) -> Answer:
        """Images -> every output of the network, image by image."""
        images = array_of(header["array"], blobs[0])
        parts = [self.outputs(header["input"], image[None]) for image in images]
        arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
        return {"arrays": [described(a) for a in arrays]}, [a.tobytes() for a in arrays]

    def outputs(self, name: str, image: Any) -> list[Any]:
        """Return every output for one image, which is called `name`."""
        self.graph.set_input(name, image)
        self.graph.run()
        return [self.graph.get_output(i).numpy() for i in range(self.graph.get_num_outputs())]

    def time(self, header: Header, blobs: Blobs) -> Answer:
        """Seconds of one inference after the other, here: without the way to this process."""
        image = array_of(header["array"], blobs[0])
        found: dict[str, list[float]] = {}
        for phase in ("warmup_s", "measure_s"):
            times, end = [], time.perf_counter() + header[phase]
            while time.perf_counter() < end:
                began = time.perf_counter()
                self.outputs(header["input"], image)
                times.append(time.perf_counter() - began)
            found[phase] = times
        return {"times": found["measure_s"]}, []


def _serve(source: IO[bytes], sink: IO[bytes]) -> None:
    worker = Worker()
    while (message := read_message(source)) is not None:
        header, blobs = message
        try:
            answer = worker.commands[header["do"]](header, blobs)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            answer = {"error": lines[-1] if lines else type(error).__name__}, []
        write_message(sink, *answer)


def main() -> int:
    """Serve standard input and output; what TVM prints goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.stack_size(_STACK_BYTES)
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            _serve(sys.stdin.buffer, sink)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    for error in failed:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
