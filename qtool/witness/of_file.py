"""The witness of an import: the original file in ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.twins import Twin, output_of, twins_of
from qtool.core.dialect import read_program
from qtool.witness.figures import real
from qtool.witness.origin import Known
from qtool.witness.verdict import Required
from runtimes.base import Floats, Inputs
from runtimes.original import run_original

# Right imports are at 37 dB and more; what a wrong axis, type or reader leaves is below 13 dB.
FLOOR_DB = 20.0
REQUIRED = Required(FLOOR_DB, None)


def known_of_file(path: Path, dialect: ir.Model, x: Inputs) -> Known:
    """Return what the file `path` computes for `x`, by the keys of the twins of `dialect`.

    Raises:
        UserError: ONNX Runtime cannot run it.
    """
    twins, program = twins_of(dialect), read_program(dialect)
    results = run_original(path, [name for _, name in twins], list(x), output_of(dialect))
    output = next(iter(results.values()))
    values = {
        key: _values(results[key[1]], twin) for key, twin in twins.items() if key[1] in results
    }
    floats = (
        output if output.dtype.kind == "f" else real(_unsigned(output), program.output_grid)
    )
    return Known(values, values, _float32(floats), _float32(floats))


def _values(result: NDArray[Any], twin: Twin) -> Floats:
    """Return real values: the file's own, or what its codes stand for."""
    if result.dtype.kind == "f":
        return _float32(result)
    return real(_unsigned(result), twin.grid)


def _unsigned(codes: NDArray[Any]) -> NDArray[Any]:
    """Return codes as uint8; int8 ones move up as in the import."""
    return (codes.astype(np.int16) + 128).astype(np.uint8) if codes.dtype == np.int8 else codes


def _float32(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32)
