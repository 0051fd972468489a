"""What `qtool export --bits all` writes, in bytes: the table of docs/pairs.md.

    python benchmarks/pair_sizes.py [--nets cnn4_omniglot,resnet20] [--weights 8,6,4,2]
                                    [--inputs 8,6,4] [--quantizer double_rounding] [--size 0]

Networks have random weights, and BatchNorm statistics of their own at every pair, as MEBQAT's
have: sizes do not depend on what was learned. A row for each form of the files.
"""

import argparse

import onnx
import onnx_ir as ir
import torch
from torch import nn

from passes.emit.onnx.onnx_file import FORMS
from passes.emit.onnx.pair_files import pair_files
from passes.pipelines import lower
from qtool.core.pairs import pair_key
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.models import model_entry, model_factory
from qtool.nn.control import calibrate
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import give_rows
from qtool.nn.prepare.prepare import QuantSpec, prepare

CLASSES = 10


def adaptive(name: str, quantizer: str, pairs: list[LayerBits], size: int) -> bytes:
    """Return the adaptive graph of a network, with statistics of every pair."""
    shape = tuple(model_entry(name).input_shape)
    shape = (shape[0], size, size) if size else shape
    torch.manual_seed(0)
    net: nn.Module = model_factory(name)(in_channels=shape[0], classes=CLASSES)
    inputs, weights = (tuple(dict.fromkeys(w)) for w in zip(*map(_widths, pairs), strict=True))
    model = prepare(net, QuantSpec(inputs, weights, quantizer=quantizer), shape)
    calibrate(model, torch.rand(4, *shape))
    give_rows(model, tuple(map(pair_key, pairs)), is_exact=True)
    for switch in model.modules():
        for norm in switch.norms if isinstance(switch, SwitchNorm) else ():
            norm.get_buffer("running_mean").normal_(0, 0.2)
            norm.get_buffer("running_var").uniform_(0.5, 2)
    graph: bytes = ir.to_proto(trace(model, shape)).SerializeToString()
    return graph


def _widths(pair: LayerBits) -> tuple[int, int]:
    return pair.activation, pair.weight


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="cnn4_omniglot,resnet20,mobilenet_v2_small")
    parser.add_argument("--quantizer", default="double_rounding")
    parser.add_argument("--weights", default="8,6,4,2")
    parser.add_argument("--inputs", default="8,6,4")
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
        for form in FORMS:
            index = pair_files(dialects, form).index
            largest = max(entry["bytes"] for entry in index["pairs"].values())
            print(
                f"| {name} | {len(pairs)} | {form} | {index['largest_alone']['bytes']:,} | "
                f"{index['shared']['bytes']:,} | {largest:,} | {index['ratio']:.2f} |"
            )


if __name__ == "__main__":
    main()
