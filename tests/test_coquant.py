"""Frontend coquant: teachers, swaps, blocks, what each method shares, its step."""

import dataclasses
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from tiny_training import plain_net, tiny_data
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.choose import Serves
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection
from qtool.data.batch_source import parts_of
from qtool.data.batches import Batches, to_batch
from qtool.frontends.coquant import teacher
from qtool.frontends.coquant.blocks import Blocks, find_blocks
from qtool.frontends.coquant.frontend import check, swapping, with_norms
from qtool.frontends.coquant.step import joint_step
from qtool.frontends.coquant.swap import SwapBatches, Swapped, probabilities, swap
from qtool.frontends.coquant.teacher import choose_teacher, entropy
from qtool.models import model_factory
from qtool.networks import quant_spec
from qtool.nn.control import calibrate, quant_layers, quantizers, select, start_clipping
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import switches
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.parallel.job import Job
from qtool.quantizers.double_rounding import rate
from qtool.recipes import load_recipe
from qtool.settings.coquant import CoquantConfig
from qtool.settings.joint_methods import METHODS
from qtool.settings.override import override
from qtool.settings.qat import QatConfig
from qtool.training.averages import Averages
from qtool.training.losses import distillation_loss, task_loss
from qtool.training.optimizers import groups_of

EIGHT, SIX, FOUR, TWO = (LayerBits(b, b) for b in (8, 6, 4, 2))
SHARES = {
    # norms with rows, steps of inputs with rows
    "vanilla": (False, False), "switchable": (True, False), "adabits": (True, True),
    "any_precision": (True, False), "double_rounding": (True, True), "coquant": (True, True),
}  # fmt: skip


def config(*settings: str) -> CoquantConfig:
    start = CoquantConfig("tiny", "none", "none")
    return override(start, ["batch_size=8", "norm_batches=2", *settings])


class Cell(nn.Module):
    """Two layers and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.two(self.one(x)))


def cells(in_channels: int = 1, classes: int = 4) -> nn.Module:
    """Two blocks, a layer of no block behind them, and the ends."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), Cell(), Cell(),
        nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


def tiny_model(settings: CoquantConfig) -> tuple[nn.Module, nn.Module]:
    """Return a network and the same, prepared and calibrated."""
    torch.manual_seed(0)
    network = cells()
    model = prepare(network, quant_spec(settings))
    calibrate(model, to_batch(tiny_data().train, slice(0, 16))[0])
    return network, model


# --- teachers ---


def logits(*entropies: float) -> list[Tensor]:
    """Return logits of two classes, (3, 2), whose predictions have these mean entropies."""
    grid = torch.linspace(0, 20, 200_001, dtype=torch.float64)
    values = torch.stack([grid, torch.zeros_like(grid)], 1)
    logs = torch.log_softmax(values, 1)
    found = -(logs.exp() * logs).sum(1)
    return [values[(found - wanted).abs().argmin()].expand(3, 2) for wanted in entropies]


def test_entropy_is_in_nats() -> None:
    assert entropy(torch.zeros(5, 10)).item() == pytest.approx(np.log(10))
    assert entropy(torch.tensor([[100.0, 0.0], [0.0, 0.0]])).item() == pytest.approx(
        np.log(2) / 2
    )


@pytest.mark.parametrize(("entropies", "weight", "expected"), [
    ((0.10, 0.20, 0.30), 0.0, EIGHT),  # the most confident one
    ((0.20, 0.10, 0.30), 0.0, SIX),
    ((0.10, 0.20, 0.30), 1.0, FOUR),  # the nearest one
    ((0.10, 0.20, 0.30), 0.001, EIGHT),
    ((0.100, 0.101, 0.110), 0.001, SIX),  # 0.106, 0.105, 0.112
    ((0.100, 0.110, 0.103), 0.001, FOUR),  # 0.106, 0.114, 0.105
    ((0.30, 0.30, 0.30), 0.0, FOUR),  # of equal ones the nearest
])  # fmt: skip
def test_the_teacher_is_confident_and_near(
    entropies: tuple[float, ...], weight: float, expected: LayerBits
) -> None:
    known = dict(zip((EIGHT, SIX, FOUR), logits(*entropies), strict=True))
    assert choose_teacher("best", TWO, known, weight) == expected


def test_other_teachers() -> None:
    known = dict(zip((EIGHT, SIX, FOUR), logits(0.1, 0.2, 0.3), strict=True))
    assert choose_teacher("next", TWO, known, 0.0) == FOUR
    assert choose_teacher("none", TWO, known, 0.0) is None
    for kind in ("next", "best"):
        assert choose_teacher(kind, EIGHT, {}, 0.0) is None  # type: ignore[arg-type]


def test_all_processes_of_a_job_choose_the_same_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the mean over their shares of the batch: the others saw 6 bits confident."""
    known = dict(zip((EIGHT, SIX), logits(0.1, 0.2), strict=True))
    assert choose_teacher("best", FOUR, known, 0.0) == EIGHT
    others = torch.tensor([0.1, 0.3], dtype=torch.float64)  # the nearest first
    monkeypatch.setattr(teacher, "all_reduce_sum", lambda mine: mine + others)
    monkeypatch.setattr(teacher, "current", lambda: Job(0, 2))
    assert choose_teacher("best", FOUR, known, 0.0) == SIX


# --- swaps ---


def test_probabilities_grow_over_blocks_and_training() -> None:
    np.testing.assert_allclose(probabilities(0.5, 0.0, 5), [0.5, 0.625, 0.75, 0.875, 1])
    np.testing.assert_allclose(probabilities(0.5, 0.5, 3), [0.75, 0.875, 1])
    np.testing.assert_allclose(probabilities(0.3, 1.0, 4), np.ones(4))
    np.testing.assert_allclose(probabilities(0.3, 0.0, 1), [0.3])
    assert probabilities(0.3, 0.0, 0).size == 0


def source(epochs: int = 10, seed: int = 0, blocks: int = 4) -> SwapBatches:
    return SwapBatches(Batches(tiny_data().train, 8, seed), epochs, 0.5, blocks, (6, 4, 2))


def test_swaps_are_drawn_alike_wherever_an_epoch_is_entered() -> None:
    whole = [swapped.own for swapped in source().epoch(3)]
    assert [swapped.own for swapped in source().epoch(3, 2)] == whole[2:]
    assert whole != [swapped.own for swapped in source().epoch(4)]
    assert whole != [swapped.own for swapped in source(seed=1).epoch(3)]
    fewer = dataclasses.replace(source(), students=(2,))
    assert [own[2] for own in whole] == [swapped.own[2] for swapped in fewer.epoch(3)]
    assert len({own[b] for own in whole for b in (6, 4, 2)}) > 3


def test_parts_of_a_batch_have_its_swaps() -> None:
    swapped = next(source().epoch(1))
    halves = parts_of(swapped, 2)
    assert [half.own for half in halves] == [swapped.own] * 2
    assert [len(half.batch[1]) for half in halves] == [4, 4]


def test_blocks_are_the_students_as_often_as_they_should() -> None:
    batches = source(epochs=2000)
    found = np.array([batches.drawn(epoch, 0)[4] for epoch in range(1, 1001)])
    # p_1 grows from 0.5 to 0.75 meanwhile; the last block is never swapped.
    np.testing.assert_allclose(found.mean(0), [0.625, 0.75, 0.875, 1], atol=0.04)


def test_a_swapped_block_has_the_teachers_bits_and_rows() -> None:
    settings = config("activation_bits=8,4,2")
    network, model = tiny_model(settings)
    with_norms(settings, model)
    blocks = find_blocks(network, model)
    assert blocks == [("3.one.0", "3.two.0"), ("4.one.0", "4.two.0")]
    select(model, swap(TWO, FOUR, blocks, (True, False)))
    found = {layer.name: layer for layer in quant_layers(model)}
    bits = {name: layer.weight_quant.selected for name, layer in found.items()}
    assert bits == {
        "0": 8, "3.one.0": 2, "3.two.0": 2, "4.one.0": 4, "4.two.0": 4, "5": 2, "10": 8,
    }  # fmt: skip
    assert {layer.input_quant.selected for layer in found.values()} == {8, 4, 2}
    keys = {s.layer: s.key for s in switches(model)}
    assert keys == {n: f"w{b}a{b}" for n, b in bits.items() if n not in ("0", "10")}
    assert swap(TWO, None, blocks, (True, False)) == Selection(default=TWO)


# --- blocks ---


def blocks_of(name: str, *names: str) -> Blocks:
    torch.manual_seed(0)
    network = model_factory(name)(in_channels=3, classes=10)
    spec = QuantSpec((8, 4), (8, 4), ends_keep=True)
    return find_blocks(network, prepare(network, spec), names)


def test_blocks_are_a_networks_repeated_modules() -> None:
    found = blocks_of("resnet18_cifar")
    assert [{name[:8] for name in block} for block in found] == [
        {f"layer{stage}.{index}"} for stage in range(1, 5) for index in range(2)
    ]
    assert len(found[2]) == 3  # its shortcut has a layer
    found = blocks_of("mobilenet_v2_small")
    assert [{name[:10] for name in block} for block in found] == [
        {f"features.{index}"} for index in range(1, 7)
    ]


def test_without_repeated_modules_every_inner_layer_is_a_block() -> None:
    found = blocks_of("svhn_cnn8")
    assert len(found) == 6 and all(len(block) == 1 for block in found)
    assert find_blocks(plain_net(), prepare(plain_net(), QuantSpec((8, 4), (8, 4)))) == [
        ("3",)
    ]


def test_blocks_may_be_named() -> None:
    assert blocks_of("resnet18_cifar", "layer4", "layer1.0.conv2") == [
        ("layer1.0.conv2",),
        ("layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv1",
         "layer4.1.conv2"),
    ]  # fmt: skip


@pytest.mark.parametrize(("names", "message"), [
    (("layr4",), "unknown recipe setting blocks: module 'layr4': did you mean layer4"),
    (("layer4", "layer4.1"), "blocks: layer4.1 is in layer4 already: name it once"),
    (("layer4", "layer4"), "blocks: layer4 is in layer4 already: name it once"),
    (("fc",), "blocks: fc has no layer whose bits change (the first and the last layer keep"),
    (("relu",), "blocks: relu has no layer whose bits change"),
])  # fmt: skip
def test_blocks_that_are_none(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        blocks_of("resnet18_cifar", *names)
    assert message in str(refused.value)


# --- methods ---


@pytest.mark.parametrize("method", METHODS)
def test_a_method_shares_what_it_says(method: str) -> None:
    settings = config(f"method={method}")
    _, model = tiny_model(settings)
    prefix = with_norms(settings, model)
    norms = [s for s in switches(model) if isinstance(s, SwitchNorm)]
    inner = quant_layers(model)[1:-1]
    has_norms, has_steps = SHARES[method]
    assert len(norms) == (5 if has_norms else 0) and {s.serves for s in norms} <= {Serves.OWN}
    assert all(s.bank.keys == ("w8a8", "w6a6", "w4a4", "w2a2") for s in norms)
    assert len({id(norm.weight) for s in norms for norm in s.norms}) == 4 * len(norms)
    learned = [
        (layer.input_quant.get_parameter(layer.input_quant.learned), layer.input_quant.bank)
        for layer in inner
        if layer.input_quant.learned
    ]
    assert bool(learned) == (method != "any_precision")
    for parameter, bank in learned:
        assert len(parameter) == bank.rows == (4 if has_steps else 1)
    # The first layer's is the same at every precision: it is computed once.
    assert prefix.norms() == [quant_layers(model)[0].norm] and not prefix.is_empty
    assert all(layer.weight_quant.kind == kind_of(method) for layer in inner)


def kind_of(method: str) -> str:
    return {"adabits": "sat", "any_precision": "any_precision",
            "double_rounding": "double_rounding"}.get(method, "sat")  # fmt: skip


def test_a_method_sets_what_is_not_given() -> None:
    start = load_recipe("coquant_resnet18_cifar")
    assert override(start, ["method=coquant"]) == start
    adabits = override(start, ["method=adabits"])
    assert isinstance(adabits, CoquantConfig)
    assert (adabits.quantizer, adabits.weight_quantizer, adabits.shared_steps) == (
        "sat", "", False,
    )  # fmt: skip
    own = override(start, ["method=vanilla", "shared_steps=false", "weight_quantizer=dorefa"])
    assert (own.quantizer, own.weight_quantizer, own.shared_steps) == ("pact", "dorefa", False)
    # What a recipe has for itself, it has in every method.
    scaled = override(load_recipe("coquant_fashion"), ["method=adabits"])
    assert (scaled.quantizer, scaled.weight_quantizer) == ("sat", "double_rounding")
    assert override(start, ["activation_bits=8,2"]).weight_bits == (8, 2)
    assert [b.weight for b in override(start, ["activation_bits=8,4"]).pairs()] == [8, 4]


def test_double_rounding_scales_the_steps_learning_rate_by_precision() -> None:
    """ALRS is in the quantizer's gradient: a pass of few bits moves the one step less."""
    settings = config("method=double_rounding", "activation_bits=8,4")
    _, model = tiny_model(settings)
    (layer, *_) = quant_layers(model)[1:]
    step = layer.weight_quant.step
    assert len(step) == 1  # of the stored codes: all precisions have it
    assert (rate(8), rate(4)) == (1, 0.01)


# --- the step ---


def gradients(
    settings: CoquantConfig, own: dict[int, tuple[bool, ...]]
) -> tuple[dict[str, Tensor], list[Tensor], Averages]:
    """Return the gradients of a step, the losses of its passes, and their averages."""
    network, model = tiny_model(settings)
    blocks = find_blocks(network, model)
    update, losses = joint_step(settings, model, with_norms(settings, model), blocks)
    found: list[Tensor] = []
    averages = Averages()
    batch = to_batch(tiny_data().train, slice(0, 8))

    def kept(part: Swapped) -> object:
        for made in losses(part):
            found.append(made.loss.detach())
            yield made

    update(cast(Callable, kept), Swapped(batch, own), averages)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return grads, found, averages


PLAIN = ("optimizer=sgd", "lr=0", "activation_bits=8,4,2", "label_smoothing=0")


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_the_method(method: str) -> None:
    settings = config(f"method={method}", "swap_start=1", "kl_weight=0.5", *PLAIN)
    network, model = tiny_model(settings)
    prefix = with_norms(settings, model)
    _, losses = joint_step(settings, model, prefix, find_blocks(network, model))
    x, labels = to_batch(tiny_data().train, slice(0, 8))
    passes = [(p.loss.item(), p.logits.detach()) for p in losses(Swapped((x, labels), {}))]
    assert len(passes) == 3
    known = dict(zip(settings.pairs(), (z for _, z in passes), strict=True))
    for index, (loss, z) in enumerate(passes):
        above = dict(list(known.items())[:index])
        kind = METHODS[method].teacher
        chosen = choose_teacher(kind, list(known)[index], above, settings.teacher_lambda)
        wanted = task_loss(settings, z, labels).item()
        if chosen is not None:
            soft = 0.5 * distillation_loss(z, known[chosen], 1.0).item()
            wanted = soft if method == "any_precision" else wanted + soft
        assert loss == pytest.approx(wanted, rel=1e-5)
    assert (METHODS[method].teacher == "none") == (method not in ("coquant", "any_precision"))


def test_a_step_is_the_sum_over_the_precisions() -> None:
    """What belongs to one precision has the gradient that it has alone."""
    together, losses, averages = gradients(config("method=switchable", *PLAIN), {})
    alone = {}
    for bits in (8, 4, 2):
        settings = config("method=switchable", *PLAIN)
        network, model = tiny_model(settings)
        prefix = with_norms(settings, model)
        one = dataclasses.replace(settings, activation_bits=(bits,))
        update, made = joint_step(one, model, prefix, find_blocks(network, model))
        update(made, Swapped(to_batch(tiny_data().train, slice(0, 8)), {}), Averages())
        alone[bits] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name, grad in together.items():
        wanted = sum(found[name] for found in alone.values())
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-5)
        if ".rows.w4a4." in name:
            torch.testing.assert_close(grad, alone[4][name], rtol=1e-3, atol=1e-5)
    assert len(losses) == 3
    averages.look()
    assert averages.totals[2] == 24


def test_a_swapped_block_moves_the_teachers_rows() -> None:
    settings = config("method=coquant", "kl_weight=0", *PLAIN)
    plain, _, _ = gradients(settings, {})
    swapped, _, _ = gradients(settings, {2: (False, True), 4: (True, True)})
    rows = {n for n in plain if "3.one.0.norm.rows" in n and n.endswith("weight")}
    own = next(n for n in rows if "w2a2" in n)
    assert plain[own].any() and not swapped[own].any()
    changed = [n for n in rows if n != own and not plain[n].equal(swapped[n])]
    assert len(changed) == 1  # the teacher's


# --- alpha ---


def test_clipping_levels_have_a_start_a_rate_and_a_decay_of_their_own() -> None:
    settings = config("pact_init=3", "pact_lr=0.5", "alpha_weight_decay=0.25", "lr=0.1")
    _, model = tiny_model(settings)
    start_clipping(model, settings.pact_init)
    alphas = [q.get_parameter("alpha") for q in quantizers(model) if q.learned == "alpha"]
    assert alphas and all(alpha.eq(3).all() for alpha in alphas)
    (group,) = (g for g in groups_of(settings, model, 0.1) if g["params"][0] is alphas[0])
    assert (len(group["params"]), group["lr"], group["weight_decay"]) == (
        len(alphas), 0.5, 0.25,
    )  # fmt: skip
    usual = groups_of(config("lr=0.1"), model, 0.1)
    assert 0.1 * settings.step_lr_factor in [g.get("lr") for g in usual]


def test_clipping_levels_start_below_a_ceiling() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU6(), nn.Flatten(),
        nn.Linear(128, 4),
    )  # fmt: skip
    spec = QuantSpec((8, 4), (8, 4), quantizer="pact")
    model = prepare(net, spec)
    start_clipping(model, 8.0)
    inner = quant_layers(model)[1].input_quant.get_parameter("alpha")
    assert inner.tolist() == [6, 6]


# --- recipes and refusals ---


@pytest.mark.parametrize(("name", "values"), [
    ("resnet18_cifar", (0.9, 1e-3, 8, 0.1, 1e-4, 128, 0.1, "multistep", 350)),
    ("mobilenet_v2_cifar", (0.5, 1e-3, 8, 0.01, 4e-5, 128, 0.01, "multistep", 160)),
    ("resnet18_imagenet", (0.7, 1e-3, 8, 0.1, 6e-5, 2880, 0.01, "multistep", 100)),
    ("resnet18_activitynet", (0.5, 1e-3, 4, 0.01, 5e-4, 72, 0.01, "cosine", 100)),
    ("resnet50_activitynet", (0.7, 1e-4, 4, 0.1, 5e-4, 72, 0.01, "cosine", 100)),
    ("resnet18_minikinetics", (0.7, 1e-3, 2, 0.1, 1e-4, 576, 0.01, "cosine", 100)),
])  # fmt: skip
def test_published_recipes_have_the_papers_numbers(name: str, values: tuple) -> None:
    found = load_recipe(f"coquant_{name}")
    assert isinstance(found, CoquantConfig) and found.method == "coquant"
    assert found.activation_bits == found.weight_bits == (8, 6, 4, 2)
    assert (
        found.swap_start, found.teacher_lambda, found.pact_init, found.pact_lr,
        found.alpha_weight_decay, found.batch_size, found.lr, found.schedule, found.epochs,
    ) == values  # fmt: skip


def test_a_precision_alone_has_the_joint_recipes_settings() -> None:
    for name in ("mobilenet_v2_small_cifar", "resnet18_cifar", "resnet18_activitynet"):
        alone, joint = load_recipe(f"qat_pact_{name}"), load_recipe(f"coquant_{name}")
        assert isinstance(alone, QatConfig)
        own = {"name", "frontend", "activation_bits", "weight_bits", "norm_batches"}
        fields = {f.name for f in dataclasses.fields(QatConfig)} - own
        both = [f for f in fields if hasattr(joint, f)]
        assert {f: getattr(alone, f) for f in both} == {f: getattr(joint, f) for f in both}


@pytest.mark.parametrize(("settings", "message"), [
    (("activation_bits=2,8",), "activation_bits: got 2,8, expected the highest precision fi"),
    (("activation_bits=8,8",), "recipe setting activation_bits: 8 is given twice"),
    (("activation_bits=32,8",), "recipe setting activation_bits: got 32, expected 1 to 8"),
    (("method=coqant",), "unknown recipe setting method 'coqant': did you mean coquant"),
    (("teacher=float",), "setting teacher: frontend coquant teaches a precision by a higher"),
    (("swap_start=2",), "recipe setting swap_start: got 2.0, expected 0 to 1"),
])  # fmt: skip
def test_wrong_settings_are_refused(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        config(*settings)
    assert message in str(refused.value)


@pytest.mark.parametrize(("settings", "message"), [
    (("activation_bits=8",), "got 8, expected two precisions at least, such as 8,4"),
    (("weight_bits=8,4",), "a precision is as many bits of both: give activation_bits alone"),
    (("blocks=layer9",), "unknown recipe setting blocks: module 'layer9'"),
])  # fmt: skip
def test_what_training_refuses(settings: tuple[str, ...], message: str) -> None:
    model = "model=test_coquant:cells"
    with pytest.raises(UserError) as refused:
        check(config(model, "device=cpu", *settings), tiny_data())
    assert message in str(refused.value)


def test_only_methods_that_swap_draw_swaps() -> None:
    batches = Batches(tiny_data().train, 8, 0)
    for method, entry in METHODS.items():
        found = swapping(config(f"method={method}"), batches, [("a",), ("b",)]).drawn(1, 0)
        assert list(found) == ([6, 4, 2] if entry.swaps else [])
