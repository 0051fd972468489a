"""Computed and shared weights: plain in the quantized network, the user's as they were."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_qtool
from test_own_nets import HERE, NETS, make
from torch import Tensor, nn

from qtool.models.macs import count_macs
from qtool.models.owned import owned, shared_parameters
from qtool.nn.capture.capture import capture
from qtool.tensor_file import load_tensors, save_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
COMPUTED = (
    "hook_norm", "hook_spectral", "weight_norm", "spectral_norm", "orthogonal", "doubled",
    "pruned",
)  # fmt: skip


def test_other_networks_are_themselves() -> None:
    network = make("plain")
    assert owned(network) is network


@pytest.mark.parametrize("name", [*COMPUTED, "tied"])
def test_the_user_s_module_stays_and_the_result_computes_the_same(name: str) -> None:
    network, x = make(name), torch.rand(3, 3, 16, 16)
    network.train()  # spectral norm iterates in training, when it is asked to compute
    before = {key: value.clone() for key, value in network.state_dict().items()}
    hooks = {path: len(m._forward_pre_hooks) for path, m in network.named_modules()}
    plain = owned(network)
    assert plain is not network and not shared_parameters(plain)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert hooks == {path: len(m._forward_pre_hooks) for path, m in network.named_modules()}
    assert torch.equal(plain.eval()(x), network.eval()(x))
    assert type(plain.get_submodule("a")) is nn.Conv2d
    assert {"a.weight", "a.bias"} <= plain.state_dict().keys()
    assert not any("orig" in key or "_g" in key for key in plain.state_dict())
    copy.deepcopy(plain)
    # Everything else is the user's own tensor.
    assert plain.get_parameter("fc.weight") is network.get_parameter("fc.weight")


def test_norms_that_share_statistics_have_their_own() -> None:
    network = make("shared_statistics").eval()
    first, second = (owned(network).get_submodule(f"norms.{index}") for index in (0, 1))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        one, other = first.get_buffer(name), second.get_buffer(name)
        assert one is network.get_buffer(f"norms.0.{name}")
        assert one is not other and torch.equal(one, other)
    x = torch.rand(3, 3, 16, 16)
    assert torch.equal(owned(network)(x), network(x))


@pytest.mark.parametrize("name", ["hook_norm", "weight_norm", "tied"])
def test_gradients_reach_plain_weights(name: str) -> None:
    captured = capture(make(name), (3, 16, 16))
    captured.train()(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in captured.parameters())


@pytest.mark.parametrize("name", [*COMPUTED, "tied"])
def test_layers_are_counted(name: str) -> None:
    layers = dict(count_macs(make(name), (3, 16, 16)))
    assert layers["a"] == 8 * 8 * 9 * 256


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    tensors: dict[str, Tensor] = {
        "a": whole, "b": whole, "part": whole[3:7], "rows": whole.view(3, 4).t(),
        "none": torch.zeros(0),
    }  # fmt: skip
    save_tensors(tmp_path / "t.safetensors", tensors, {})
    found, _ = load_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


_LONG = [pytest.param(n, marks=pytest.mark.nightly) for n in ("spectral_norm", "norm_act")]


@pytest.mark.parametrize("name", ["hook_norm", "tied", *_LONG])
def test_they_are_trained_resumed_and_exported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in NETS
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, HERE, sys.modules["test_own_nets"])
    monkeypatch.chdir(tmp_path)
    args = (
        "train", "qat", "--model", f"{HERE}:net_{name}", "--data", f"{HERE}:data",
        "--set", "float_epochs=1", "--set", "epochs=1", "--set", "teacher=float",
        "--set", "ema=0.5", "--out", "run",
    )  # fmt: skip
    done = run_qtool(*args)
    assert done.code == 0, done.err
    Path("run/model.safetensors").unlink()
    again = run_qtool(*args, "--resume")
    assert again.code == 0, again.err
    for target in ("m.onnx", "n.onnx"):
        made = run_qtool("export", "run", "--target", "onnx", "-o", target)
        assert made.code == 0, made.err
    checked = run_qtool("check", "m.onnx", "--reference", "run", "--data", f"{HERE}:data",
                        "--require-parity")  # fmt: skip
    assert checked.code == 0, checked.err
