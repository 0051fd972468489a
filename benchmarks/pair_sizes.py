"""What `qtool export --bits all` writes, in bytes: the table of docs/pairs.md.

    python benchmarks/pair_sizes.py [--nets cnn4_omniglot,resnet20] [--weights 8,6,4,2]
                                    [--inputs 8,6,4] [--quantizer double_rounding] [--size 0]
                                    [--forms qdq,qop,tvm]

Networks have random weights, and BatchNorm statistics of their own at every pair, as MEBQAT's
have: sizes do not depend on what was learned. A row for each form of the files; of a TVM
library "shared" is its constants, and what else there is, is divided by the pairs.
"""

import argparse

import onnx
import onnx_ir as ir
import torch
from torch import nn

from passes.emit.onnx.onnx_file import FORMS
from passes.emit.onnx.pair_files import pair_files
from passes.emit.tvm.cpu_target import host_target
from passes.emit.tvm.pairs import compile_pairs, plan_pairs
from passes.pipelines import lower
from qtool.core.choose import Serves
from qtool.core.dialect import read_program
from qtool.core.pairs import pair_key
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.models import model_entry, model_factory
from qtool.nn.control import calibrate
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import give_rows
from qtool.nn.prepare.prepare import QuantSpec, prepare

CLASSES = 10
TVM = "tvm"


def adaptive(name: str, quantizer: str, pairs: list[LayerBits], size: int) -> bytes:
    """Return the adaptive graph of a network, with statistics of every pair."""
    shape = tuple(model_entry(name).input_shape)
    shape = (shape[0], size, size) if size else shape
    torch.manual_seed(0)
    net: nn.Module = model_factory(name)(in_channels=shape[0], classes=CLASSES)
    inputs, weights = (tuple(dict.fromkeys(w)) for w in zip(*map(_widths, pairs), strict=True))
    model = prepare(net, QuantSpec(inputs, weights, quantizer=quantizer), shape)
    calibrate(model, torch.rand(4, *shape))
    give_rows(model, tuple(map(pair_key, pairs)), Serves.WHOLE)
    for switch in model.modules():
        for norm in switch.norms if isinstance(switch, SwitchNorm) else ():
            norm.get_buffer("running_mean").normal_(0, 0.2)
            norm.get_buffer("running_var").uniform_(0.5, 2)
    graph: bytes = ir.to_proto(trace(model, shape)).SerializeToString()
    return graph


def row(form: str, dialects: dict[str, ir.Model]) -> tuple[int, int, int, float]:
    """Return bytes of the widest pair alone, of what is shared, of a pair; the ratio."""
    if form == TVM:
        target = host_target()
        programs = {pair: read_program(dialect) for pair, dialect in dialects.items()}
        made = compile_pairs(plan_pairs(programs, target), target)
        shared, total = made.compiled.module.constants, len(made.compiled.data)
        return len(made.alone.data), shared, (total - shared) // len(dialects), made.ratio
    index = pair_files(dialects, form).index
    largest = max(entry["bytes"] for entry in index["pairs"].values())
    return (
        index["largest_alone"]["bytes"], index["shared"]["bytes"], largest, index["ratio"],
    )  # fmt: skip


def _widths(pair: LayerBits) -> tuple[int, int]:
    return pair.activation, pair.weight


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="cnn4_omniglot,resnet20,mobilenet_v2_small")
    parser.add_argument("--quantizer", default="double_rounding")
    parser.add_argument("--weights", default="8,6,4,2")
    parser.add_argument("--inputs", default="8,6,4")
    parser.add_argument("--forms", default=",".join((*FORMS, TVM)))
    parser.add_argument("--size", type=int, default=0, help="side of images; 0: the usual")
    args = parser.parse_args()
    weights, inputs = (
        [int(n) for n in text.split(",")] for text in (args.weights, args.inputs)
    )
    pairs = [LayerBits(w, a) for w in weights for a in inputs]
    print("| network | pairs | form | widest alone | shared | a graph | all, x alone |")
    print("|---|---|---|---|---|---|---|")
    for name in args.nets.split(","):
        graph = adaptive(name, args.quantizer, pairs, args.size)
        dialects = {
            pair_key(p): lower(
                ir.from_proto(onnx.load_model_from_string(graph)), Selection(default=p)
            )
            for p in pairs
        }
        for form in args.forms.split(","):
            alone, shared, graph, ratio = row(form, dialects)
            print(
                f"| {name} | {len(pairs)} | {form} | {alone:,} | {shared:,} | {graph:,} | "
                f"{ratio:.2f} |"
            )


if __name__ == "__main__":
    main()
