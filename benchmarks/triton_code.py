"""What the Triton runtime would run on a GPU, compiled on a machine without one.

    python benchmarks/triton_code.py MODEL.onnx [--arch 90] [--batch 1] [--processors 132]
                                     [--ptx FOLDER]

Says of every kernel how many layers launch it and which matrix instructions it has; --ptx
writes the assembly. ARCH is a compute capability, 80 or 90; from the number of multiprocessors
the runtime chooses its tiles.
"""

import argparse
import re
from pathlib import Path

from qtool.core.errors import UserError
from qtool.export.read import read_onnx

_MATRIX = re.compile(r"\b(?:wgmma\.mma_async|mma)\.sync[\w.]*")


def main() -> None:
    """Compile what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--processors", type=int, default=132)
    parser.add_argument("--ptx", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    from runtimes.triton.compiled import compile_kernels

    try:
        program = read_onnx(args.model)
        codes = compile_kernels(program, args.batch, args.arch, args.processors)
        for index, code in enumerate(codes):
            found = sorted(set(_MATRIX.findall(code.ptx)))
            print(f"{code.kernel:12} {len(code.layers):3} x  {', '.join(found)}", flush=True)
            if args.ptx is not None:
                args.ptx.mkdir(parents=True, exist_ok=True)
                (args.ptx / f"{index:03}_{code.kernel}.ptx").write_text(code.ptx)
    except UserError as error:
        raise SystemExit(f"benchmarks/triton_code.py: {error}") from None


if __name__ == "__main__":
    main()
