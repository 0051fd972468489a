"""Which of qtool's patterns OpenVINO rounds differently: the tables of docs/openvino.md.

    python benchmarks/openvino_rounding.py [--draws 8] [--size 96] [--bits 8 4]

Every pattern is a small QDQ model with random codes and grids; ONNX Runtime, which agrees with
the numpy reference to the last integer, says what is right. The networks have random weights.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from openvino_patterns import BEFORE_ADD, DIVISIONS, PATTERNS, Build, Qdq

from qtool.export.read import read_onnx
from runtimes.compare import Parity, output_codes
from runtimes.isa import read_isa
from runtimes.openvino import CONFIG, OpenVinoRuntime
from runtimes.ort import OrtRuntime

CONFIGS: dict[str, dict[str, Any]] = {
    "as OpenVINO chooses": {"INFERENCE_PRECISION_HINT": openvino.Core().get_property(
        "CPU", "INFERENCE_PRECISION_HINT")},
    "f32": CONFIG,
    "f32, LPT off": {
        **CONFIG, "LP_TRANSFORMS_MODE": "NO", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    },
}  # fmt: skip


def main() -> None:
    """Print the tables of patterns, then that of networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=8, help="random models per pattern")
    parser.add_argument("--size", type=int, default=96, help="side of the images, of 8 n")
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4], help="of the networks")
    parser.add_argument("--networks", nargs="*", default=["resnet18", "mobilenet_v2"])
    args = parser.parse_args()
    chosen = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    print(f"OpenVINO {openvino.__version__}, {read_isa().features[0]}, own choice: {chosen}\n")
    print(*table("pattern", PATTERNS, args.draws), sep="\n")
    print()
    print(*table("between Conv and Add", BEFORE_ADD, args.draws), sep="\n")
    print()
    print(*table("division by a step", DIVISIONS, args.draws), sep="\n")
    print()
    print(*network_table(args.networks, args.bits, args.size), sep="\n")


def table(title: str, patterns: Mapping[str, Build], draws: int) -> Iterator[str]:
    """Yield the lines of a Markdown table: share of differing integers and largest LSB."""
    yield from header(title, "integers", *CONFIGS)
    for name, build in patterns.items():
        cells = [pattern_parity(build, config, draws) for config in CONFIGS.values()]
        yield "| " + " | ".join([name, f"{cells[0].compared:,}", *map(share, cells)]) + " |"


def header(*columns: str) -> tuple[str, str]:
    """Return the first two lines of a Markdown table."""
    return "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"


def share(parity: Parity) -> str:
    """Return ``8.4 %, 1 LSB`` or ``0``."""
    if not parity.mismatched:
        return "0"
    part = 100 * parity.mismatched / parity.compared
    return f"{part:.2g} %, {parity.max_lsb} LSB"


def pattern_parity(build: Build, config: Mapping[str, Any], draws: int) -> Parity:
    """Compare OpenVINO with ONNX Runtime on the first output of `draws` random models."""
    parity = Parity()
    for seed in range(draws):
        b = Qdq(np.random.default_rng(seed))
        results = build(b)
        data = b.model(*(results if isinstance(results, tuple) else [results]))
        expected = in_ort(data, b.feeds)
        compiled = openvino.Core().compile_model(
            openvino.Core().read_model(data), "CPU", {**config, "INFERENCE_NUM_THREADS": 1}
        )
        parity.add(str(seed), expected, np.array(compiled(list(b.feeds.values()))[0]))
    return parity


def in_ort(data: bytes, feeds: Mapping[str, Any]) -> Any:
    """Return the first output in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))[0]


def network_table(names: Sequence[str], all_bits: Sequence[int], size: int) -> Iterator[str]:
    """Yield a Markdown table of whole networks: logits, classes, milliseconds at batch 1."""
    yield from header(
        "network", "spelling", "OpenVINO", "logits that differ", "float layers",
        "OpenVINO ms", "ONNX Runtime ms",
    )  # fmt: skip
    for name, bits in itertools.product(names, all_bits):
        with tempfile.TemporaryDirectory() as folder:
            emitted = write_network(name, bits, size, Path(folder))
            other = Path(folder) / "max.onnx"
            onnx.save(with_max_before_add(onnx.load(emitted)), other)
            for spelling, path in (("as emitted", emitted), ("Max(0) before Add", other)):
                title = f"{name} w{bits}a{bits} | {spelling}"
                yield from network_lines(title, emitted, path, size)


def write_network(name: str, bits: int, size: int, folder: Path) -> Path:
    """Write network `name` with random weights at w8a8, w4a4, ... as qtool exports it."""
    import onnx_ir as ir
    import torch

    from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
    from passes.pipelines import lower
    from qtool.core.selection import Selection
    from qtool.export.trace import trace
    from qtool.models import model_factory
    from qtool.nn.control import calibrate, quantizers
    from qtool.nn.prepare.prepare import QuantSpec, prepare

    torch.manual_seed(0)
    model = model_factory(name)(classes=100)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d) and norm.running_var is not None:
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, 0, 0.3)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    prepared = prepare(model, QuantSpec((bits,), weight_bits=bits))
    calibrate(prepared, torch.from_numpy(images(size)[:16]))
    for quantizer in quantizers(prepared):
        if isinstance(quantizer.step, torch.nn.Parameter):
            # Calibrated steps are simple fractions of a value and make ties; trained ones not.
            quantizer.step.data.mul_(torch.empty_like(quantizer.step).uniform_(0.9, 1.1))
    path = folder / f"{name}.onnx"
    ir.save(emit_onnx_qdq(lower(trace(prepared, (3, size, size)), Selection({})), {}), path)
    return path


def with_max_before_add(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with Max(codes, 0) between a Conv's Q and an Add: the same integers."""
    result = copy.deepcopy(model)
    makers = {name: node for node in result.graph.node for name in node.output}
    zero = onnx.numpy_helper.from_array(np.uint8(0), "max_zero")
    result.graph.initializer.append(zero)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        inputs = [makers.get(name) for name in node.input] if node.op_type == "Add" else []
        for index, dequantize in enumerate(inputs):
            quantize = dequantize and makers.get(dequantize.input[0])
            conv = quantize and makers.get(quantize.input[0])
            if not conv or conv.op_type != "Conv" or dequantize is None:
                continue
            codes, real = f"{dequantize.output[0]}/max", f"{dequantize.output[0]}/m"
            made, reads = onnx.helper.make_node, list(dequantize.input)
            nodes.append(made("Max", [reads[0], zero.name], [codes]))
            nodes.append(made("DequantizeLinear", [codes, *reads[1:]], [real]))
            node.input[index] = real
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def network_lines(title: str, emitted: Path, path: Path, size: int) -> Iterator[str]:
    """Yield a line per configuration of OpenVINO for the network in `path`."""
    grid, x = read_onnx(emitted).output_grid, images(size)
    ort = OrtRuntime(path)
    expected = OrtRuntime(emitted).run(x)
    if not np.array_equal(ort.run(x), expected):
        raise SystemExit(f"{title}: the spelling changed the numbers in ONNX Runtime")
    ort_ms = milliseconds(lambda: ort.run(x[:1]))
    for name, config in CONFIGS.items():
        runtime = OpenVinoRuntime(path, config=config)
        got, parity = runtime.run(x), Parity()
        pair = (output_codes(y, grid.scale, grid.zero_point) for y in (expected, got))
        parity.add("logits", *pair)
        ms = milliseconds(lambda runtime=runtime: runtime.run(x[:1]))
        cells = [share(parity), str(runtime.float_ops().total())]
        yield "| " + " | ".join([title, name, *cells, f"{ms:.2f}", f"{ort_ms:.2f}"]) + " |"


def images(size: int) -> Any:
    """Return 64 random images of coarse squares; pixels are k / 255, as from a file."""
    coarse = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8))
    pixels = coarse.repeat(size // 8, 2).repeat(size // 8, 3)
    return np.ascontiguousarray(pixels.astype(np.float32) / np.float32(255))


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of `call`, after warming up, over half a second."""
    times: list[float] = []
    call()
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[len(times) // 5 :])


if __name__ == "__main__":
    main()
