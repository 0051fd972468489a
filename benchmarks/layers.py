"""What every layer of a network costs in its TVM module, and its share of the core's peak.

    python benchmarks/layers.py [--net resnet18] [--size 224] [--bits w8a8] [--largest N]
                                [--turns 7] [--json FILE] [--folder DIR]

Layers of one shape are one row. A layer is timed in modules that hold nothing but copies of it
(`single_layer`): what further copies add, by their number. That is bias, requantization and
clip included, without a residual addition that the whole network may have fused into it. The
peak (`vnni_peak`) and the whole network are measured in the same rounds, and processor time
with one thread is what counts. What is not in the table (pools, additions, tables, quantizing
the image) is the rest of the network's time.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import interleaved
import numpy as np
import vnni_peak
from cases import QTOOL, write_files
from interleaved import engine_command
from networks import write_program
from single_layer import Site, repeated, sites

from qtool.core.errors import UserError
from qtool.core.tvm_env import require_tvm
from qtool.export.read import read_onnx

FURTHER = 4  # copies of a layer more in the second module than in the first


@dataclass(frozen=True)
class Row:
    """Layers of one shape.

    Args:
        layers: their names.
        geometry: input, kernel/stride, output.
        macs: multiply-accumulates of one of them.
        microseconds: of one of them.
        gmac_per_s: 10^9 multiply-accumulates a second.
        main_share: time of all of them, as a share of the whole network's.
        peak_share: speed as a share of the peak; None without VNNI.
    """

    layers: tuple[str, ...]
    geometry: str
    macs: int
    microseconds: float
    gmac_per_s: float
    main_share: float
    peak_share: float | None


def main() -> None:
    """Measure every layer and print the table, the most expensive rows first."""
    args = arguments()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = [f"{args.bits}.{form}" for form in ("qdq", "so")]
        files = write_files(args.net, args.size, args.folder or scratch, names, keep=False)
        whole = engine_command("tvm", files[names[1]], 1, (3, args.size, args.size))
        found = sorted(sites(read_onnx(files[names[0]])), key=lambda site: -site.macs)
        rows = [measured(site, whole, scratch, args.turns) for site in found[: args.largest]]
    print(*markdown(rows), "", sep="\n")
    total = sum(row.main_share for row in rows)
    print(
        f"{args.net} {args.bits}: these layers are {100 * total:.0f} % of the network's time"
    )
    if args.json:
        result = {"net": args.net, "bits": args.bits, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--bits", choices=QTOOL, default="w8a8", help="as in cases.py")
    parser.add_argument("--largest", type=int, metavar="N", help="only N shapes, most MACs")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    try:
        require_tvm()
    except UserError as error:
        parser.error(str(error))
    if args.turns < 2:
        parser.error("--turns must be at least 2")
    return args


def measured(site: Site, whole: list[str], folder: Path, turns: int) -> Row:
    """Compile the modules of one layer; time them next to the `whole` network and the peak."""
    commands = {"main": whole}
    for name, copies in (("first", 1), ("all", 1 + FURTHER)):
        path = folder / f"{name}.so"
        write_program(repeated(site, copies), path)
        commands[name] = engine_command("tvm", path, 1, site.input_shape, "uint8")
    widest = next(iter(vnni_peak.widths()), None)
    if widest is not None:
        commands["peak"] = vnni_peak.command(widest)
    rounds = {
        name: np.array(timing.turns(1))
        for name, timing in interleaved.measure(commands, turns).items()
    }
    milliseconds = (rounds["all"] - rounds["first"]) / FURTHER
    median, share = float(np.median(milliseconds)), None
    if widest is not None:
        fastest = site.macs * rounds["peak"] / vnni_peak.macs(widest)
        share = float(np.median(fastest / milliseconds))
    of_main = float(np.median(milliseconds / rounds["main"])) * len(site.names)
    speed = site.macs / median / 1e6
    return Row(site.names, site.geometry, site.macs, 1e3 * median, speed, of_main, share)


def markdown(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield (
        "| layer | layers | input, kernel/stride, output | M MACs | us | of main | GMAC/s "
        "| of peak |"
    )
    yield "|---" * 8 + "|"
    for row in sorted(rows, key=lambda row: -row.main_share):
        share = "" if row.peak_share is None else f"{100 * row.peak_share:.0f} %"
        yield (
            f"| {row.layers[0]} | {len(row.layers)} | {row.geometry} | {row.macs / 1e6:.2f} | "
            f"{row.microseconds:.1f} | {100 * row.main_share:.1f} % | {row.gmac_per_s:.0f} | "
            f"{share} |"
        )


if __name__ == "__main__":
    main()
