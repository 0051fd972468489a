"""Prototypical networks for every pair of bits: loss, tasks, training, resuming, refusals."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_qtool
from fewshot_sets import TINY, pn_config, tiny_fewshot
from numpy.typing import NDArray
from test_runs import Assassin, Killed
from torch import Tensor, nn

from qtool.core.errors import UserError
from qtool.core.pairs import pair_key, pair_name
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits
from qtool.data.episodes import EpisodeDraws, EpisodeSize, Task
from qtool.data.images import DataSet
from qtool.frontends.mebqat import episode_training, pn
from qtool.frontends.mebqat.episode_accuracy import (
    EmbeddedEpisodes,
    batch_statistics,
    transductive_accuracy,
)
from qtool.frontends.mebqat.episode_training import first_grids, make_tasks
from qtool.networks import build_float, load_adaptive, quant_spec
from qtool.nn.control import quant_layers, select_pair
from qtool.nn.norm_rows import active_norms
from qtool.nn.prepare.prepare import prepare
from qtool.nn.prototypes import prototype_logits, prototypes
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.override import override
from qtool.training.averages import Averages
from qtool.training.episode_tests import EpisodeAccuracy
from qtool.training.frontend import load_frontend

WAYS, SHOTS, QUERIES, SIZE = 4, 3, 5, 7
Array = NDArray[np.float64]


# --- the loss ---


def episode() -> tuple[Task, Array]:
    """Return an episode and embeddings (N, SIZE) of its images, supports in mixed order."""
    rng = np.random.default_rng(0)
    order = rng.permutation(np.repeat(np.arange(WAYS), SHOTS))
    labels, queries = torch.from_numpy(order), torch.arange(WAYS).repeat_interleave(QUERIES)
    none = torch.zeros(len(labels), 0), torch.zeros(len(queries), 0)
    embedded = rng.normal(size=(len(labels) + len(queries), SIZE))
    return Task(none[0], labels, none[1], queries, 0), embedded


def formula(task: Task, embedded: Array) -> tuple[float, Array]:
    """Return loss and gradient of Snell et al.'s Eq. 1 and 2, written out in float64.

    d/dq = 2 sum over k of (q - c_k) (1[k = y] - p_k) / Q;  d/dc_k = -that term, summed over q;
    a support image of class k has 1 / shots of it.
    """
    count = len(task.support_labels)
    support, query = embedded[:count], embedded[count:]
    labels, wanted = task.support_labels.numpy(), task.query_labels.numpy()
    centres = np.stack([support[labels == k].mean(0) for k in range(WAYS)])
    difference = query[:, None] - centres
    distance = (difference**2).sum(2)
    share = np.exp(-distance) / np.exp(-distance).sum(1, keepdims=True)
    loss = -np.log(share[np.arange(len(query)), wanted]).mean()
    weight = (np.eye(WAYS)[wanted] - share) / len(query)
    term = 2 * difference * weight[..., None]
    of_support = -term.sum(0)[labels] / SHOTS
    return float(loss), np.concatenate([of_support, term.sum(1)])


def test_the_loss_is_that_of_the_paper_and_so_is_its_gradient() -> None:
    task, embedded = episode()
    x = torch.from_numpy(embedded).float().requires_grad_()
    found = pn.episode_pass(x, task, WAYS)
    loss, gradient = formula(task, x.detach().double().numpy())
    assert found.loss.item() == pytest.approx(loss, rel=1e-6)
    (grad,) = torch.autograd.grad(found.loss, x)
    assert np.allclose(grad.numpy(), gradient, atol=1e-6 * np.abs(gradient).max())
    assert found.labels is task.query_labels and found.logits.shape == (20, WAYS)


def test_prototypes_are_means_of_classes_of_any_size() -> None:
    embedded = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    centres = prototypes(embedded, torch.tensor([0, 0, 1]), 2)
    assert centres.tolist() == [[2, 1], [5, 5]]
    assert prototype_logits(embedded[:1], centres).tolist() == [[-2, -41]]


# --- a step ---


def prepared(*settings: str) -> tuple[pn.PnConfig, nn.Module]:
    config, data = pn_config(*settings), tiny_fewshot()
    run = Run(Path(), config, data.shape, data.classes)
    model = prepare(build_float(run), quant_spec(config), data.shape)
    first_grids(config, model, data)
    return config, model


ONE = ("shared_steps=false",)


@pytest.mark.parametrize(("settings", "episodes", "passes"), [
    ((), 1, 4), (("tasks=3",), 1, 3), (("inner_loop=joint",), 4, 1),
    (("inner_loop=none",), 1, 1), (("bits=fp", *ONE), 1, 1), (("bits=w4a2", *ONE), 1, 1),
])  # fmt: skip
def test_what_a_step_is_made_of(settings: tuple[str, ...], episodes: int, passes: int) -> None:
    config, model = prepared(*settings)
    tasks = make_tasks(config, tiny_fewshot(), episodes, episodes * passes)
    assert pn.plan(config) == (episodes, passes)
    selected: list[LayerBits | None] = []
    for batch in tasks.epoch(1):
        update, losses = pn.pn_step(config, model)
        seen = list(_bits(update, losses, batch, model))
        assert [pair_name(bits) for bits in seen] == [pair_name(b) for b in batch.pairs]
        assert len(batch.batch.support) == episodes and len(seen) == episodes * passes
        selected += batch.pairs
    if config.pair is None:
        assert len(set(selected)) > 1 and set(selected) <= set(config.pairs())
    else:
        assert set(selected) == {config.pair}


def _bits(update, losses, batch, model):  # type: ignore[no-untyped-def]
    """Yield the pair that an inner layer has at every pass."""
    inner = quant_layers(model)[1]
    for made in losses(batch):
        widths = (inner.weight_quant.selected, inner.input_quant.selected)
        halves = (inner.weight_quant.is_half, inner.input_quant.is_half)
        pair = zip(widths, halves, strict=True)
        yield LayerBits(*(width or (16 if is_half else 32) for width, is_half in pair))
        made.loss.backward()


def test_the_last_layer_of_an_embedding_varies_and_the_first_does_not() -> None:
    _, model = prepared()
    first, second, third = quant_layers(model)
    select_pair(model, LayerBits(2, 4))
    assert (first.weight_quant.selected, first.input_quant.selected) == (8, 8)
    for layer in (second, third):
        assert (layer.weight_quant.selected, layer.input_quant.selected) == (2, 4)


def test_a_step_trains_what_its_tasks_used() -> None:
    config, model = prepared("bits=fp", *ONE)
    update, losses = pn.pn_step(config, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update(losses, next(make_tasks(config, tiny_fewshot(), 1, 1).epoch(1)), Averages())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    inner = [layer for layer in quant_layers(model)[1:]]
    steps = {name for name, _ in model.named_parameters() if name.endswith("step")}
    assert {f"{layer.name}.layer.weight" for layer in inner} <= changed
    # The first layer keeps its 8 bits; nothing else is quantized in floating point.
    assert {n for n in steps & changed} == {n for n in steps if n.startswith("0.0.")}


# --- training ---


def train(folder: Path, *settings: str, resume: bool = False, progress=None) -> Run:  # type: ignore[no-untyped-def]
    config, data = pn_config(*settings), tiny_fewshot()
    frontend = load_frontend("mebqat_pn")
    frontend.check(config, data)
    run = Run.create(folder, config, data, resume, False)
    frontend.train(run, data, progress or Silent(), resume)
    return run


@pytest.fixture(scope="module")
def pn_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("pn") / "run", "checkpoint_steps=3")


def outcome(folder: Path) -> list[bytes]:
    names = ("float", "model", "norms")
    files = [folder / f"{name}.safetensors" for name in names]
    return [file.read_bytes() for file in (*files, folder / "metrics.jsonl")]


# Inside an epoch before and after a checkpoint, at its end, in statistics, in tests.
@pytest.mark.parametrize("steps", [2, 4, 5, 8, 12, 8 + 2 * 13 + 1])
def test_training_continues_in_the_same_bits(pn_run: Run, tmp_path: Path, steps: int) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "run", "checkpoint_steps=3", progress=Assassin(steps))
    train(tmp_path / "run", "checkpoint_steps=3", resume=True)
    assert outcome(tmp_path / "run") == outcome(pn_run.folder)


def test_a_run_has_what_it_is_tested_with(pn_run: Run) -> None:
    lines = pn_run.metrics("test")
    assert [line["bits"] for line in lines] == ["w2a2", "fp"]
    for line in lines:
        mean, interval, episodes = line["test_accuracy"]
        assert 0 <= mean <= 100 and interval >= 0 and episodes == 12
        assert line["transductive_accuracy"][2] == 3
    assert "device_accuracy" in lines[0] and "device_accuracy" not in lines[1]
    rows = {name.partition("/")[0] for name in pn_run.load_weights(Stage.NORMS)}
    pairs = {pair_key(bits) for bits in pn_run.config.pairs()}  # type: ignore[attr-defined]
    assert rows == pairs - {"w8a8"}


def test_training_learns_at_every_pair(tmp_path: Path) -> None:
    """Untrained, two bits know little of the patterns; seconds of training change that."""
    data, settings = tiny_fewshot(), ("epochs=12", "episodes=10", "lr=0.005")
    draws = EpisodeDraws(data.test.labels, EpisodeSize(6, 1, 5), 7, "tiny")

    def accuracies(run: Run) -> list[float]:
        model, found = load_adaptive(run), []
        for bits in (LayerBits(2, 2), LayerBits(4, 4), LayerBits(32, 32)):
            select_pair(model, bits)
            found.append(EmbeddedEpisodes(model, data.test, draws, 100).nearest().mean)
        return found

    before = accuracies(train(tmp_path / "before", "epochs=0"))
    after = accuracies(train(tmp_path / "after", *settings))
    assert all(new > old + 5 for new, old in zip(after, before, strict=True)), (before, after)


def test_one_pair_is_trained_and_the_others_get_grids_that_fit(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "bits=w4a4", *ONE)
    selection = run.selection()
    widths = {(bits.weight, bits.activation) for bits in selection.layers.values()}
    assert widths == {(4, 4), (8, 8)}
    model = load_adaptive(run)
    layer = quant_layers(model)[1]
    weight = layer.layer.weight
    errors = {}
    for width in (8, 4, 2):
        rounded = layer.weight_quant.quantize_at(weight, width)
        errors[width] = (rounded - weight).square().mean().item()
    assert errors[8] < errors[4] < errors[2]
    assert layer.weight_quant.step.shape[0] == 3


# --- accuracy ---


def test_the_interval_is_that_of_the_mean_over_episodes() -> None:
    found = EpisodeAccuracy.of([1.0, 0.5, 0.0, 0.5])
    assert found.mean == 50 and found.episodes == 4
    assert found.interval == pytest.approx(1.96 * np.std([100, 50, 0, 50], ddof=1) / 2)


class Pixels(nn.Module):
    """An embedding that knows nothing: the image itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_the_nearest_prototype_is_counted() -> None:
    data = tiny_fewshot()
    draws = EpisodeDraws(data.test.labels, EpisodeSize(3, 2, 4), 0, "tiny")
    shares = []
    for number in range(10):
        rows = draws.rows(0, number)
        x = data.test.load(rows.reshape(-1)).reshape(*rows.shape, -1) / 255.0
        centres = x[:, :2].mean(1)
        distance = ((x[:, 2:, None] - centres) ** 2).sum(-1)
        shares.append((distance.argmin(-1) == np.arange(3)[:, None]).mean())
    found = EmbeddedEpisodes(Pixels(), data.test, draws, 10).nearest()
    assert found.mean == pytest.approx(100 * np.mean(shares))
    assert transductive_accuracy(Pixels(), data.test, draws, 10) == found


def test_statistics_stay_while_batches_are_normalised_with_their_own(pn_run: Run) -> None:
    model = load_adaptive(pn_run)
    norms = active_norms(model)
    before = [(n.get_buffer("running_mean").clone(), n.num_batches_tracked) for n in norms]
    x = torch.rand(12, *tiny_fewshot().shape)
    with torch.no_grad(), batch_statistics(model):
        one, two = model(x), model(x + 0.1)
    assert not torch.equal(one, two) and not model.training
    for norm, (mean, count) in zip(norms, before, strict=True):
        assert torch.equal(norm.get_buffer("running_mean"), mean)
        assert norm.num_batches_tracked == count


# --- refusals ---


@pytest.mark.parametrize(("settings", "said"), [
    (("ways=13",), "data set tiny, training: 12 classes, an episode has 13"),
    (("shots=6", "queries=5"), "training: a class of 10 images, an episode takes 6 shots and"),
    (("test_ways=7",), "data set tiny, test: 6 classes, an episode has 7"),
    (("inner_loop=joint", "accumulate=3"), "got 3, but a step has 4 episodes, which it"),
    (("accumulate=2",), "accumulate: got 2, but a step has 1 episode, which it must divide"),
])  # fmt: skip
def test_data_that_do_not_do(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pn.check(pn_config(*settings), tiny_fewshot())


@pytest.mark.parametrize("quantizer", ["sat", "sat_centered", "dorefa", "any_precision"])
def test_weights_that_no_layer_of_prototypes_can_have(quantizer: str) -> None:
    config = pn_config(f"quantizer={quantizer}")
    said = f"{quantizer} gives .* train with weight_quantizer lsq, lsq_plus, pact, double_r"
    with pytest.raises(UserError, match=said):
        pn.check(config, tiny_fewshot())
    pn.check(override(config, ["weight_quantizer=lsq"]), tiny_fewshot())


@pytest.mark.parametrize(("settings", "bits"), [
    (("test_bits=fp,w4a2",), "w4a2"),
    (("test_bits=fp",), "w8a8"),
    (("test_bits=", "weight_bits=32,5", "activation_bits=32,6"), "w5a6"),
    (("bits=w2a8", "shared_steps=false"), "w2a8"),
    (("bits=fp", "shared_steps=false", "test_bits="), "w8a8"),
])  # fmt: skip
def test_hints_name_a_pair_that_there_is(settings: tuple[str, ...], bits: str) -> None:
    assert pn_config(*settings).example_bits == bits


@pytest.mark.parametrize(("setting", "said"), [
    ("bits=w4a4", "w4a4 is trained alone, so that steps .*: add --set shared_steps=false"),
    ("bits=w3a4", "recipe setting bits 'w3a4': w3a4 is not among the candidates: there are"),
    ("bits=w4a4,w2a2", "recipe setting bits: got w4a4,w2a2, expected one pair"),
    ("test_bits=w4a3", "recipe setting test_bits 'w4a3': w4a3 is not among the candidates"),
    ("weight_bits=32", "weight_bits: got 32, expected a candidate of 1 to 8 bits at least"),
    ("augment=flip", "augment and teacher: episodes have neither"),
    ("inner_loop=both", "unknown recipe setting inner_loop 'both'"),
])  # fmt: skip
def test_settings_that_contradict_each_other(setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        pn_config(setting)


def test_classes_that_training_has_seen_are_no_test() -> None:
    data = tiny_fewshot()
    seen = DataSet("seen", data.train, data.train, 12)
    with pytest.raises(UserError, match="seen: its test classes are those of training; meth"):
        pn.check(pn_config(), seen)


def test_a_job_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_training, "current", lambda: SimpleNamespace(size=2))
    with pytest.raises(UserError, match="mebqat_pn trains in one process, this job has 2"):
        pn.check(pn_config(), tiny_fewshot())


@pytest.mark.parametrize("name", ["mebqat", "metamix", "ptq", "qat"])
def test_other_frontends_want_the_classes_that_they_train_on(name: str) -> None:
    config = load_frontend(name).settings("r", "fewshot_sets:embedding", "tiny")
    settings = ["bits=w8a8", "weights=x.pt"] if name == "ptq" else []
    with pytest.raises(UserError, match="data set tiny: its test classes are not those of tr"):
        load_frontend(name).check(override(config, settings), tiny_fewshot())


def test_the_command(tmp_path: Path) -> None:
    settings = (*TINY, "model=fewshot_sets:embedding")
    chosen = [word for each in settings for word in ("--set", each)]
    options = ("--data", "fewshot_sets:tiny_fewshot", "--out", tmp_path / "run")
    done = run_qtool("train", "mebqat_pn_omniglot", *chosen, *options)
    assert done.code == 0, done.err
    assert "w2a2" in done.out and "±" in done.out and "next: qtool adapt" in done.out
    assert "--bits w2a2 -o ADAPTED" in done.out
