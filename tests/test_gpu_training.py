"""Training steps on a GPU that is not there (`fake_gpu`): nothing stays on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import pytest
import torch
from fake_gpu import GPU, fake_gpu, on_gpu
from torch import Tensor, nn

from qtool.core.cost import FLOAT_BITS
from qtool.core.pairs import parse_pair
from qtool.core.selection import LayerBits, Selection
from qtool.data.batch_source import to_device
from qtool.data.episodes import Episode
from qtool.frontends.coquant.blocks import find_blocks
from qtool.frontends.coquant.frontend import swapping, with_norms
from qtool.frontends.coquant.step import joint_step
from qtool.frontends.coquant.swap import Swapped
from qtool.frontends.mebqat.maml import maml_step
from qtool.frontends.mebqat.pn import pn_step
from qtool.frontends.mebqat.step import pairs_step
from qtool.frontends.mebqat.tasks import Tasked
from qtool.frontends.metamix.bit_meta import bit_meta
from qtool.networks import build_network, quant_spec
from qtool.nn.control import calibrate, select
from qtool.nn.prepare.prepare import prepare
from qtool.nn.prepare.spec import QuantSpec
from qtool.recipes.mebqat_fewshot import mebqat_maml_omniglot, mebqat_pn_omniglot
from qtool.settings.base import TrainConfig
from qtool.settings.coquant import CoquantConfig
from qtool.settings.joint_methods import METHODS
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override
from qtool.settings.qat import QatConfig
from qtool.training.averages import Averages
from qtool.training.ingredients import make_objective, plain_phase

SHAPE, NET = (3, 40, 40), "svhn_cnn8"
# What is given to a step: of a prepared model, images and labels.
Step = Callable[[nn.Module, Tensor, Tensor], Any]


def prepared(
    config: TrainConfig, shape: tuple[int, ...], spec: QuantSpec | None = None
) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    network = build_network(config, shape, 10)
    model = prepare(network, spec or quant_spec(config), shape)
    calibrate(model, torch.rand(4, *shape))
    return network, model


def trained(
    config: TrainConfig,
    step: Step,
    shape: tuple[int, ...] = SHAPE,
    spec: QuantSpec | None = None,
) -> nn.Module:
    """Do a step of `config` on the GPU; return the model."""
    _, model = prepared(config, shape, spec)
    with fake_gpu() as mode:
        there = on_gpu(mode, model)
        step(
            there,
            torch.rand(4, *shape, device=GPU),
            torch.zeros(4, dtype=torch.long, device=GPU),
        )
    return there


def all_on_gpu(model: nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(grads) and all(t.device == GPU for t in [*tensors, *grads])


def test_two_devices_are_an_error() -> None:
    with fake_gpu(), pytest.raises(RuntimeError, match="same device"):
        torch.rand(3, device=GPU) + torch.rand(3)


@pytest.mark.parametrize("quantizer", ["lsq", "pact", "lsq_plus", "sat", "dorefa"])
def test_qat(quantizer: str) -> None:
    config = QatConfig("t", NET, "none", bits="w4a4")
    spec = QuantSpec((4,), 4, asymmetric=True, quantizer=quantizer)

    def step(model: nn.Module, x: Tensor, labels: Tensor) -> None:
        select(model, Selection())
        plain_phase("qat", config, model, 1, 0.1).step((x, labels), Averages())

    assert all_on_gpu(trained(config, step, spec=spec))


@pytest.mark.parametrize("shared", [True, False])
def test_mebqat(shared: bool) -> None:
    config = MebqatConfig("t", NET, "none", shared_steps=shared)
    pairs = (FLOAT_BITS, LayerBits(2, 2), LayerBits(4, 16))

    def step(model: nn.Module, x: Tensor, labels: Tensor) -> None:
        update, losses = pairs_step(config, model)
        update(losses, Tasked((x, labels), pairs), Averages())

    assert all_on_gpu(trained(config, step))


@pytest.mark.parametrize("method", METHODS)
def test_coquant(method: str) -> None:
    config = override(
        CoquantConfig("t", NET, "none"), [f"method={method}", "activation_bits=8,4,2"]
    )
    network, whole = prepared(config, SHAPE)
    prefix = with_norms(config, whole)
    blocks = find_blocks(network, whole)

    with fake_gpu() as mode:
        model = on_gpu(mode, whole)
        x, labels = (
            torch.rand(4, *SHAPE, device=GPU),
            torch.zeros(4, dtype=torch.long, device=GPU),
        )
        update, losses = joint_step(config, model, type(prefix)(model), blocks)
        drawn = swapping(config, _Same(), blocks).drawn(1, 0)
        update(losses, Swapped((x, labels), drawn), Averages())
    assert all_on_gpu(model)


def test_bit_meta() -> None:
    config = MetaMixConfig("t", NET, "none")

    def step(model: nn.Module, x: Tensor, labels: Tensor) -> None:
        update, losses = bit_meta(config, 0.1, model, make_objective(config))
        update(losses, (x, labels), Averages())

    assert all_on_gpu(trained(config, step))


def episode(ways: int, tasks: int, shape: tuple[int, ...]) -> Episode:
    images = torch.rand(tasks, ways, *shape)
    labels = torch.arange(ways).expand(tasks, ways)
    return Episode(images, labels, images, labels, torch.arange(tasks))


@pytest.mark.parametrize("made", [mebqat_pn_omniglot(), mebqat_maml_omniglot()])
def test_episodes(made: Any) -> None:
    config = replace(made, ways=3, shots=1, queries=1, tasks=2, inner_steps=1) if hasattr(
        made, "inner_steps"
    ) else replace(made, ways=3, shots=1, queries=1, tasks=2)  # fmt: skip
    make, shape = (maml_step if hasattr(made, "inner_steps") else pn_step), (1, 28, 28)
    pairs = tuple(parse_pair(name) for name in ("w4a4", "w2a2"))

    def step(model: nn.Module, x: Tensor, labels: Tensor) -> None:
        update, losses = make(config, model)
        count = 1 if make is pn_step else 2
        update(losses, Tasked(to_device(episode(3, count, shape), GPU), pairs), Averages())

    assert all_on_gpu(trained(config, step, shape))


class _Same:
    """A source of batches that is asked for its seed and length alone."""

    seed = 0

    def __len__(self) -> int:
        return 10

    def epoch(self, index: int, start: int = 0) -> NoReturn:
        raise NotImplementedError
