"""ONNX Runtime's providers for GPUs: what can be tested where there is none."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import run_qtool
from test_cli_errors import refused

from qtool.core.dialect import Conv, Gemm
from qtool.core.errors import UserError
from qtool.export.read import read_onnx
from runtimes.ort import OrtRuntime, count_float_ops, start_session
from runtimes.ort_gpu import ENGINE, OrtCudaRuntime, OrtTensorRtRuntime, opaque_ops
from runtimes.registry import PROVIDERS, RUNTIMES

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def model(tiny: Path) -> Path:
    return tiny / "model.onnx"


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_build_without_the_provider(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(UserError, match=r"built without \w+ExecutionProvider \(it has CPU"):
        RUNTIMES[PROVIDERS[name]].require()
    result = run_qtool("check", model, "--ort-provider", name)
    refused(result, "built without", "pip install onnxruntime-gpu")


def test_a_provider_that_is_no_choice(model: Path) -> None:
    refused(run_qtool("check", model, "--ort-provider", "metal"), "'cuda', 'tensorrt'")


@pytest.mark.parametrize("kind", [OrtCudaRuntime, OrtTensorRtRuntime])
def test_a_provider_that_does_not_start_is_not_the_cpu(
    kind: type[OrtRuntime], model: Path
) -> None:
    with pytest.raises(UserError, match=f"{kind.provider} did not start: no GPU"):
        kind(model)


def test_layers_that_stay_float_are_counted(model: Path, tmp_path: Path) -> None:
    """A graph whose layers nobody fused, as the CUDA provider leaves it."""
    fused, plain = tmp_path / "fused.onnx", tmp_path / "plain.onnx"
    content = model.read_bytes()
    start_session(content, 1, model, CPU, optimized_model_filepath=str(fused))
    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    start_session(
        content, 1, model, CPU, optimized_model_filepath=str(plain),
        graph_optimization_level=basic,
    )  # fmt: skip
    layers = [op for op in read_onnx(model).ops if isinstance(op, Conv | Gemm)]
    assert count_float_ops(onnx.load(fused)).total() == 0
    found = count_float_ops(onnx.load(plain))
    assert found["Conv"] + found["Gemm"] == len(layers) > 0


def test_engines_and_floats_outside_of_them(model: Path, tmp_path: Path) -> None:
    runtime = OrtRuntime(model)
    session = start_session(
        runtime._model, 1, model, CPU, enable_profiling=True,
        profile_file_prefix=str(tmp_path / "run"),
    )  # fmt: skip
    given = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    session.run(None, {given.name: np.zeros(shape, np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = len(runtime._optimized.graph.node)
    assert opaque_ops(events, CPU) == {ENGINE: nodes}
    assert not opaque_ops(events, "another")
    tanh = {
        "cat": "Node", "name": "t_kernel_time",
        "args": {"op_name": "Tanh", "provider": CPU, "output_type_shape": [{"float": [1]}]},
    }  # fmt: skip
    assert opaque_ops([*events, tanh], "another") == {"Tanh": 1}


def test_providers_are_listed_as_runtimes() -> None:
    assert PROVIDERS == {"cuda": "ort-cuda", "tensorrt": "ort-tensorrt"}
    assert not any(RUNTIMES[name].exact for name in PROVIDERS.values())
