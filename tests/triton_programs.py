"""Programs in the Triton runtime: every integer and the output are the reference's."""

from typing import Any

import numpy as np

from qtool.core.dialect import Program
from runtimes.compare import Parity
from runtimes.reference import ReferenceRuntime
from runtimes.triton.runtime import TritonRuntime


def same(program: Program, x: Any) -> TritonRuntime:
    """Fail unless every tensor and the output are the reference's; return the runtime."""
    reference, runtime = ReferenceRuntime(program), TritonRuntime(program)
    expected, got = reference.intermediates(x), runtime.intermediates(x)
    assert list(got) == list(expected)
    parity = Parity()
    parity.add_all(expected, got)
    assert parity.mismatched == 0, parity.first_divergence
    # Here memory is used again, so that one tensor may not overwrite another.
    assert np.array_equal(runtime.run(x), reference.run(x))
    return runtime
