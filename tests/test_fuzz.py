"""Random networks of every operator: the same integers in every runtime and form."""

import pytest
from fuzz_check import ISLANDS, check, minimal
from gpu_kernels import PRODUCTS
from kernel_calls import cpu_for

from qtool.core.errors import UnsupportedError

# This machine's own unit is in every other test.
UNITS = ("avx512_vnni", "avx_vnni", "avx2", "sse2", "neon_dot", "portable")


def run(seed: int, unit: str = "") -> None:
    try:
        found = check(seed, unit=unit)
    except UnsupportedError as error:
        # Scales are drawn blindly: now and then an average is refused. Draw another network.
        assert "ONNX Runtime takes 2^-32 to 256" in str(error), minimal(seed, unit)
        run(seed + 1_000_000, unit)
        return
    except Exception as error:
        raise AssertionError(minimal(seed, unit)) from error
    assert not found, minimal(seed, unit)


@pytest.mark.parametrize("seed", range(40))
def test_random_graph(seed: int) -> None:
    run(seed)


@pytest.mark.parametrize("seed", range(3000, 3020))
def test_random_graph_with_islands(seed: int) -> None:
    run(seed, ISLANDS)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("seed", range(2000, 2003))
def test_random_graph_on_other_units(seed: int, unit: str) -> None:
    cpu_for(unit)
    run(seed, unit)


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("seed", range(4000, 4003))
def test_random_graph_on_gpu_kernels(seed: int, products: str) -> None:
    run(seed, products)


@pytest.mark.nightly
@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("seed", range(4003, 4103))
def test_random_graph_on_gpu_kernels_sweep(seed: int, products: str) -> None:
    run(seed, products)


@pytest.mark.nightly
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("seed", range(2003, 2043))
def test_random_graph_on_other_units_sweep(seed: int, unit: str) -> None:
    cpu_for(unit)
    run(seed, unit)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_random_graph_sweep(seed: int) -> None:
    run(seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3020, 3220))
def test_random_graph_with_islands_sweep(seed: int) -> None:
    run(seed, ISLANDS)
