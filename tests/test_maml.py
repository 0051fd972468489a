"""First-order MAML at every pair of bits: inner loop, gradient, training, adaptation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_qtool
from fewshot_sets import SHAPE, TINY, patterns, tiny_fewshot, write_support
from test_pn import outcome
from test_runs import Assassin, Killed
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.errors import UserError
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection
from qtool.data.batches import to_batch
from qtool.data.images import Images
from qtool.frontends.mebqat import maml
from qtool.frontends.mebqat.episode_training import first_grids, make_tasks
from qtool.frontends.mebqat.inner_loop import (
    fine_tuned,
    first_order,
    inner_parameters,
    kept_state,
    settle_on,
)
from qtool.networks import build_float, load_deployed, quant_spec
from qtool.nn.control import quant_layers, select_pair
from qtool.nn.prepare.prepare import prepare
from qtool.runs.run import Run
from qtool.settings.episodes import MamlConfig
from qtool.settings.override import override
from qtool.training.averages import Averages
from qtool.training.evaluation import predict
from qtool.training.frontend import load_frontend

WAYS = 3
OWN = ("ways=3", "test_ways=3", "shots=2", "tasks=2", "inner_steps=3", "test_episodes=6")


def classifier(in_channels: int = 1, classes: int = WAYS) -> nn.Module:
    """8x8 images to logits, three quantized layers; gamma stays 1, as in MAML."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        norm = nn.BatchNorm2d(outputs)
        norm.weight.requires_grad_(False)
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)
        )

    return nn.Sequential(
        block(in_channels, 8), block(8, 16), nn.Flatten(), nn.Linear(64, classes)
    )


def maml_config(*settings: str) -> MamlConfig:
    config = MamlConfig("tiny", "test_maml:classifier", "fewshot_sets:tiny_fewshot")
    return override(config, [*TINY, *OWN, *settings])


def prepared(*settings: str) -> tuple[MamlConfig, nn.Module]:
    config, data = maml_config(*settings), tiny_fewshot()
    run = Run(Path(), config, data.shape, config.ways)
    model = prepare(build_float(run), quant_spec(config), data.shape)
    first_grids(config, model, data)
    model.train()
    return config, model


def episode() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, *_) = make_tasks(maml_config(), tiny_fewshot(), 2, 2).epoch(1)
    task = next(batch.batch.tasks())
    return task.support, task.support_labels, task.query, task.query_labels


# --- the inner loop ---


def test_the_inner_loop_is_plain_sgd_on_everything_but_norms() -> None:
    _, model = prepared()
    x, labels, _, _ = episode()
    select_pair(model, LayerBits(4, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = fine_tuned(model, x, labels, 2, 0.1)
    names = set(values)
    assert not any(".norm." in name for name in names)
    assert any(name.endswith("input_quant.step") for name in names)
    assert any(name.endswith("weight_quant.step") for name in names)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    # The same by hand: steps of torch's SGD on a network of its own.
    optimizer = torch.optim.SGD(inner_parameters(model).values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    for name, parameter in inner_parameters(model).items():
        assert torch.allclose(values[name], parameter, rtol=1e-5, atol=1e-7), name
    changed = [n for n, value in values.items() if not torch.equal(value, before[n])]
    assert any(name.endswith("step") for name in changed)


def test_the_gradient_is_that_at_the_adapted_values() -> None:
    _, model = prepared()
    x, labels, query, wanted = episode()
    select_pair(model, LayerBits(8, 4))
    values = fine_tuned(model, x, labels, 3, 0.1)
    loss = functional.cross_entropy(first_order(model, query, values), wanted)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values.get(name, parameter))
            parameter.grad = None
    functional.cross_entropy(model(query), wanted).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-6), name
    assert any(".norm.bias" in name for name in found)


def test_a_task_in_floating_point_uses_no_steps() -> None:
    _, model = prepared()
    x, labels, query, wanted = episode()
    select_pair(model, LayerBits(32, 32))
    values = fine_tuned(model, x, labels, 1, 0.1)
    functional.cross_entropy(first_order(model, query, values), wanted).backward()  # type: ignore[no-untyped-call]
    used = {n for n, p in model.named_parameters() if p.grad is not None and "step" in n}
    # Those of the ends, which keep their 8 bits.
    assert used and all(name.startswith(("0.0.", "3.")) for name in used)


def test_settling_takes_the_statistics_of_the_support_images() -> None:
    _, model = prepared()
    x, labels, _, _ = episode()
    select_pair(model, LayerBits(4, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with kept_state(model), torch.no_grad():
        settle_on(model, x, fine_tuned(model, x, labels, 2, 0.1))
        assert not model.training
        first = quant_layers(model)[0]
        weight = first.weight_quant(first.layer.weight)
        y = functional.conv2d(x, weight, first.layer.bias, padding=1)
        assert first.batch_norm is not None
        mean = first.batch_norm.get_buffer("running_mean")
        assert torch.allclose(mean, y.mean((0, 2, 3)), atol=1e-4)
        changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
        assert any(name.endswith("layer.weight") for name in changed)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# --- training ---


def train(folder: Path, *settings: str, resume: bool = False, progress=None) -> Run:  # type: ignore[no-untyped-def]
    config, data = maml_config(*settings), tiny_fewshot()
    frontend = load_frontend("mebqat_maml")
    frontend.check(config, data)
    run = Run.create(folder, config, data, resume, False)
    frontend.train(run, data, progress or Silent(), resume)
    return run


@pytest.fixture(scope="module")
def maml_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("maml") / "run", "checkpoint_steps=3")


@pytest.mark.parametrize("steps", [2, 4, 5, 12])
def test_training_continues_in_the_same_bits(
    maml_run: Run, tmp_path: Path, steps: int
) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "run", "checkpoint_steps=3", progress=Assassin(steps))
    train(tmp_path / "run", "checkpoint_steps=3", resume=True)
    assert outcome(tmp_path / "run") == outcome(maml_run.folder)


def test_every_task_has_a_pair_of_its_own() -> None:
    config, model = prepared("tasks=4")
    tasks = make_tasks(config, tiny_fewshot(), 4, 4)
    batches = list(tasks.epoch(1))
    assert all(len(b.pairs) == len(b.batch.support) == 4 for b in batches)
    assert len({pair for batch in batches for pair in batch.pairs}) > 4
    update, losses = maml.maml_step(config, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update(losses, batches[0], Averages())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"0.0.norm.bias", "1.0.layer.weight", "1.0.weight_quant.step"} <= changed
    assert "0.0.norm.weight" not in changed


@pytest.mark.parametrize("settings", [(), ("bits=w4a4", "shared_steps=false")])
def test_a_step_in_parts_has_the_same_gradient(settings: tuple[str, ...]) -> None:
    found = []
    for parts in (1, 2):
        config, model = prepared("tasks=4", f"accumulate={parts}", *settings)
        update, losses = maml.maml_step(config, model)
        update(losses, next(make_tasks(config, tiny_fewshot(), 4, 4).epoch(1)), Averages())
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert torch.allclose(grad, found[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.nightly
def test_training_learns_to_fine_tune(tmp_path: Path) -> None:
    settings = ("bits=w8a8", "shared_steps=false", "test_bits=w8a8", "test_episodes=40")
    before = train(tmp_path / "before", *settings, "epochs=0").metrics("test")[-1]
    more = ("epochs=10", "episodes=10", "lr=0.003", "tasks=4")
    after = train(tmp_path / "after", *settings, *more).metrics("test")[-1]
    for name in ("test_accuracy", "transductive_accuracy"):
        assert after[name][0] > before[name][0] + 5, (before, after)
    assert after["device_accuracy"] == after["test_accuracy"]


# --- adaptation ---


@pytest.fixture(scope="module")
def support(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_support(tmp_path_factory.mktemp("support"), patterns(WAYS, 4, 9))


def test_an_adapted_run_is_the_fine_tuned_network(
    maml_run: Run, support: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "run", tmp_path / "model.onnx"
    command = ("--support", support, "--bits", "w4a4", "-o", out)
    done = run_qtool("adapt", maml_run.folder, *command)
    assert done.code == 0, done.err
    exported = run_qtool("export", out, "--target", "onnx", "-o", model)
    assert exported.code == 0, exported.err
    assert "witness: 0 of " in exported.err
    images = patterns(WAYS, 4, 9)
    turns = np.argsort(np.tile(np.arange(4), WAYS), kind="stable")  # as folders are read
    images = Images(images.pixels[turns], images.labels[turns])
    config = maml_run.settings(MamlConfig)
    own = load_deployed(maml_run, Selection(default=LayerBits(4, 4)))
    x, labels = to_batch(images, slice(None))
    own.train()
    settle_on(own, x, fine_tuned(own, x, labels, config.inner_steps, config.inner_lr))
    adapted = load_deployed(Run.open(out), Run.open(out).selection())
    others = patterns(WAYS, 30, 3)
    assert torch.equal(predict(own, others), predict(adapted, others))
    assert json.loads((out / "classes.json").read_text())["classes"][0] == "class0"


def test_another_number_of_classes_is_refused(maml_run: Run, tmp_path: Path) -> None:
    folder = write_support(tmp_path / "support", patterns(2, 2, 0))
    command = ("--support", folder, "--bits", "w4a4", "-o", tmp_path / "run")
    refused = run_qtool("adapt", maml_run.folder, *command)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "tells 3 classes apart, the support folder has 2: expected 3" in refused.err
    assert not (tmp_path / "run").exists()
    export = ("export", maml_run.folder, "--target", "onnx", "-o", tmp_path / "m.onnx")
    for more in ((), ("--bits", "w4a4", "--calibration", tmp_path / "none")):
        exported = run_qtool(*export, *more)
        assert exported.code == 2 and "is a network to be fine-tuned: " in exported.err


def test_a_logit_a_class() -> None:
    with pytest.raises(UserError, match="ways and test_ways: got 3 and 4; the network has a"):
        maml_config("test_ways=4")
    assert maml_config().outputs(99) == WAYS and SHAPE == (1, 8, 8)
