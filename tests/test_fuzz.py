"""Random networks of every operator: the same integers in every runtime and form."""

import pytest
from fuzz_check import check, minimal

from qtool.errors import UnsupportedError


def run(seed: int) -> None:
    try:
        found = check(seed)
    except UnsupportedError as error:
        # Scales are drawn blindly: now and then an average is refused. Draw another network.
        assert "ONNX Runtime takes 2^-32 to 256" in str(error), minimal(seed)
        run(seed + 1_000_000)
        return
    except Exception as error:
        raise AssertionError(minimal(seed)) from error
    assert not found, minimal(seed)


@pytest.mark.parametrize("seed", range(40))
def test_random_graph(seed: int) -> None:
    run(seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_random_graph_sweep(seed: int) -> None:
    run(seed)
