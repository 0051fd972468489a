"""Frontend mebqat: tasks, its step, statistics of every pair, deployed modules, refusals."""

import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from cifar import write_cifar10
from conftest import Result, run_qtool
from tiny_training import plain_net, tiny_data
from torch import Tensor, nn
from torch.nn import functional

from passes.emit.onnx.target import OnnxTarget
from passes.emit.tvm.target import TvmTarget
from qtool.checking.check import check
from qtool.core.cost import FLOAT_BITS
from qtool.core.pairs import allowed_pairs, pair_key
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection, parse_uniform
from qtool.data import load_dataset
from qtool.data.batches import Batches, to_batch
from qtool.export.export import ExportOptions, export
from qtool.frontends.mebqat.float_form import float_state
from qtool.frontends.mebqat.frontend import measured
from qtool.frontends.mebqat.step import pairs_step
from qtool.frontends.mebqat.tasks import BINARY, TaskBatches, Tasked, forced_tasks
from qtool.networks import build_prepared, load_adaptive, load_float
from qtool.nn.control import (
    calibrate,
    quant_layers,
    quantizers,
    select,
    select_pair,
    selected_bits,
)
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import settle, switches
from qtool.nn.ops.half import half
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.override import override
from qtool.training import loop
from qtool.training.averages import Averages
from qtool.training.evaluation import accuracy, recalibrate_norms
from qtool.training.statistics import take_statistics

BITS = (8, 4, 2, 1, 16, 32)
SMALL = (
    "model=test_mebqat:network", "batch_size=20", "norm_batches=1", "calibration_images=8",
    "float_epochs=0", "epochs=1", "weight_bits=8,4,2,1,32", "activation_bits=8,4,3,1,16,32",
)  # fmt: skip


def network(in_channels: int = 3, classes: int = 10) -> nn.Module:
    """Four quantized layers, three BatchNorms and an addition."""
    return Residual(in_channels, classes)


def same_network() -> nn.Module:
    """Return `network` for the tiny data, always with the same weights."""
    torch.manual_seed(0)
    return network(1, 4)


class Residual(nn.Module):
    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2), nn.BatchNorm2d(8))
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.last = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = functional.relu(self.two(self.one(x)) + x)
        y: Tensor = self.last(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


def config(*settings: str) -> MebqatConfig:
    start = MebqatConfig("tiny", "none", "none", weight_bits=BITS, activation_bits=BITS)
    return override(start, ["batch_size=8", "norm_batches=2", *settings])


def tiny_model(network: nn.Module | None = None, quantizer: str = "lsq") -> nn.Module:
    """Return a calibrated network of 8, 4, 2 and 1 bits, its ends at 8."""
    torch.manual_seed(0)
    grids = (8, 4, 2, 1)
    spec = QuantSpec(grids, grids, quantizer=quantizer, shared=True, ends_keep=True)
    model = prepare(plain_net() if network is None else network, spec)
    calibrate(model, to_batch(tiny_data().train, slice(0, 16))[0])
    return model


# --- tasks ---


def test_pairs_are_those_of_the_paper() -> None:
    """Table 6: 1-bit weights with 1-bit or float inputs, float weights with float inputs."""
    found = allowed_pairs((1, 2, 16, 32), (1, 2, 16, 32))
    assert [(b.weight, b.activation) for b in found] == [
        (1, 1), (1, 32), (2, 2), (2, 16), (2, 32), (16, 2), (16, 16), (16, 32), (32, 32),
    ]  # fmt: skip


def test_tasks_are_drawn_alike_wherever_an_epoch_is_entered() -> None:
    data, settings = tiny_data(), config()
    pairs = settings.pairs()
    tasks = TaskBatches(Batches(data.train, 8, 0), pairs, 4, forced_tasks(pairs))
    whole = [tasked.pairs for tasked in tasks.epoch(3)]
    assert [tasked.pairs for tasked in tasks.epoch(3, 2)] == whole[2:]
    assert all(each[:2] == (FLOAT_BITS, BINARY) and len(each) == 4 for each in whole)
    assert whole != [tasked.pairs for tasked in tasks.epoch(4)]
    drawn = {pair for epoch in range(99) for pair in tasks.drawn(epoch, 1)[2:]}
    assert drawn == set(pairs)


def test_without_one_bit_candidates_only_float_is_forced() -> None:
    assert forced_tasks(allowed_pairs((4, 2, 32), (4, 32))) == (FLOAT_BITS,)
    few = allowed_pairs((4, 2, 32), (4, 2, 32))
    assert forced_tasks(few, narrowest=True) == (FLOAT_BITS, LayerBits(2, 2))
    assert forced_tasks([BINARY, LayerBits(2, 2)], narrowest=True) == (FLOAT_BITS, BINARY)


# --- the step ---


def test_losses_are_those_of_the_paper() -> None:
    """CE, and towards the float task's softmax, which has no gradient, soft CE."""
    model, settings = tiny_model(), config("self_distillation=0.5", "label_smoothing=0")
    _, losses = pairs_step(settings, model)
    x, labels = to_batch(tiny_data().train, slice(0, 8))
    pairs = (FLOAT_BITS, LayerBits(4, 2), LayerBits(2, 32))
    found = [(p.loss.detach(), p.logits.detach()) for p in losses(Tasked((x, labels), pairs))]
    teacher = functional.softmax(found[0][1].double(), 1)
    for (loss, logits), bits in zip(found, pairs, strict=True):
        logs = functional.log_softmax(logits.double(), 1)
        wanted = -logs[torch.arange(8), labels].mean()
        if bits != FLOAT_BITS:
            wanted = wanted - 0.5 * (teacher * logs).sum(1).mean()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert len({logits.sum().item() for _, logits in found}) == 3


def test_a_step_is_the_mean_over_the_tasks_that_used_a_parameter() -> None:
    """Against gradients of each task alone; clamped elementwise."""
    settings = config("optimizer=sgd", "momentum=0", "weight_decay=0", "step_lr_factor=1")
    x, labels = to_batch(tiny_data().train, slice(0, 8))
    pairs = (FLOAT_BITS, LayerBits(2, 2), LayerBits(4, 32))
    alone = [_gradients(settings, (FLOAT_BITS, bits), x, labels) for bits in pairs[1:]]
    first = _gradients(settings, (FLOAT_BITS,), x, labels)
    both = _gradients(settings, pairs, x, labels)
    for name, grad in both.items():
        used = [first.get(name)] + [
            None if name not in g else g[name] * (2 if name in first else 1)
            - first.get(name, torch.zeros(()))
            for g in alone
        ]  # fmt: skip
        known = [g for g in used if g is not None]
        torch.testing.assert_close(grad, sum(known) / len(known), rtol=1e-3, atol=1e-5)
    steps = [name for name in both if name.endswith("step")]
    assert steps and not set(steps) <= set(first)


def _gradients(
    settings: MebqatConfig, pairs: tuple[LayerBits, ...], x: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    model = tiny_model()
    update, losses = pairs_step(settings, model)
    update(losses, Tasked((x, labels), pairs), Averages())
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_clamped() -> None:
    x, labels = to_batch(tiny_data().train, slice(0, 8))
    found = _gradients(config("clamp=1e-3"), (FLOAT_BITS, LayerBits(2, 2)), x, labels)
    largest = max(grad.abs().max().item() for grad in found.values())
    assert largest == pytest.approx(1e-3)


# --- float tensors ---


@pytest.mark.parametrize(("bits", "weights", "inputs"), [
    ((4, 2), [8, 4, 8], [8, 2, 8]), ((32, 2), [8, None, 8], [8, 2, 8]),
    ((4, 32), [8, 4, 8], [8, None, 8]), ((32, 32), [8, None, 8], [8, None, 8]),
    ((4, 16), [8, 4, 8], [8, None, 8]),
])  # fmt: skip
def test_a_pair_is_of_all_layers_but_the_ends(
    bits: tuple[int, int], weights: list[int | None], inputs: list[int | None]
) -> None:
    model, pair = tiny_model(), LayerBits(*bits)
    select_pair(model, pair)
    layers = quant_layers(model)
    assert [layer.weight_quant.selected for layer in layers] == weights
    assert [layer.input_quant.selected for layer in layers] == inputs
    others = [q.selected for q in quantizers(model) if q.role in ("glue", "output")]
    assert others and all((bits is None) == (pair.activation > 8) for bits in others)
    given = selected_bits(model, Selection(default=pair))
    assert list(given.values()) == [LayerBits(8, 8), pair, LayerBits(8, 8)]


def test_sixteen_bits_are_float16() -> None:
    x = torch.tensor([1.0001, -70000.0, 3e-8, 65519.9], requires_grad=True)
    y = half(x)
    assert y.tolist() == [1.0, -65504.0, 2**-24 * round(3e-8 / 2**-24), 65504.0]
    (y * torch.arange(4.0)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 2, 3]
    model = tiny_model()
    select_pair(model, LayerBits(16, 16))
    inner = quant_layers(model)[1]
    assert inner.weight_quant(torch.tensor([1.0001])).item() == 1.0
    assert inner.input_quant.eval()(torch.tensor([1.0001])).item() == 1.0


# --- statistics ---


def test_statistics_of_a_pair_are_those_taken_at_it_alone() -> None:
    pairs = [LayerBits(8, 8), LayerBits(4, 2), LayerBits(2, 32), FLOAT_BITS]
    together, batches = tiny_model(same_network()), Batches(tiny_data().train, 8, 0)
    take_statistics(together, batches, 3, pairs, Silent())
    assert len(switches(together)) == 2  # the first layer's norm is the same at every pair
    for bits in pairs:
        alone = tiny_model(same_network())
        select_pair(alone, bits)
        recalibrate_norms(alone, batches, 3)
        select_pair(together, bits)
        for mine, other in zip(quant_layers(together), quant_layers(alone), strict=True):
            if mine.batch_norm is not None and other.batch_norm is not None:
                got, wanted = (n.batch_norm.state_dict() for n in (mine, other))
                for name in ("running_mean", "running_var"):
                    torch.testing.assert_close(got[name], wanted[name])


@pytest.mark.parametrize("quantizer", ["lsq", "sat"])
def test_the_float_task_is_a_plain_network(quantizer: str) -> None:
    plain = same_network()
    model = tiny_model(plain, quantizer)
    pairs = [LayerBits(4, 4), FLOAT_BITS]
    take_statistics(model, Batches(tiny_data().train, 8, 0), 3, pairs, Silent())
    other = network(1, 4)
    other.load_state_dict(float_state(plain, model, FLOAT_BITS))
    select_pair(model, FLOAT_BITS)
    for layer in (quant_layers(model)[0], quant_layers(model)[-1]):
        layer.input_quant.choose(None)  # the plain network rounds nothing
    x = to_batch(tiny_data().test, slice(0, 8))[0]
    torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


# --- runs ---


def train(data: Path, out: Path, *settings: str, resume: bool = False) -> Result:
    chosen = (word for each in (*SMALL, *settings) for word in ("--set", each))
    more = ("--resume",) if resume else ()
    return run_qtool(
        "train", "mebqat_mobilenet_v2_small_cifar", "--data", data, "--out", out, *chosen,
        *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp("source"), images=40)


@pytest.fixture(scope="module")
def mebqat_run(source: Path) -> Path:
    done = train(source, source / "run")
    assert done.code == 0, done.err
    return source / "run"


def test_a_run_keeps_statistics_of_every_pair(mebqat_run: Path, source: Path) -> None:
    run = Run.open(mebqat_run)
    settings = run.settings(MebqatConfig)
    keys = {name.split("/")[0] for name in run.load_weights(Stage.NORMS)}
    assert keys == {pair_key(bits) for bits in measured(settings)} - {"w8a8"}
    assert {"w1a1", "w1a32", "w4a16", "w32a32", "w32a8"} < keys and "w32a16" not in keys
    data = load_dataset("cifar10", source)
    plain = accuracy(load_float(run), data.test)
    assert plain == run.metrics("pairs")[-2]["test_accuracy"]
    assert not run.path("checkpoint.safetensors").exists()


PAIRS = ("w8a8", "w8a4", "w8a3", "w4a8", "w4a4", "w4a3", "w2a8", "w2a4", "w2a3", "w1a1")


@pytest.mark.parametrize("bits", [
    "w2a3", "w1a1", *(pytest.param(bits, marks=pytest.mark.nightly) for bits in PAIRS[:-2]),
])  # fmt: skip
def test_every_pair_is_deployed_exactly(
    mebqat_run: Path, source: Path, tmp_path: Path, bits: str
) -> None:
    paths = {OnnxTarget(): tmp_path / "model.onnx", TvmTarget(): tmp_path / "model.so"}
    for target, path in paths.items():
        export(mebqat_run, ExportOptions(target, bits=bits), path, force=False)
    runtimes = ["reference", "ort", "tvm"]
    (record,) = check([*paths.values()], source, runtimes, None, Silent())
    report = record.to_json()
    assert [report["parity"][name]["mismatched"] for name in ("ort", "tvm")] == [0, 0]
    pair = parse_uniform(bits)
    assert pair is not None
    assert report["layers"]["one.0"] == [pair.weight, pair.activation]
    model = load_adaptive(Run.open(mebqat_run))
    select(model, Selection(default=pair))
    data = load_dataset("cifar10", source)
    assert report["accuracy"]["ort"] == accuracy(model, data.test)


def test_rows_of_the_pair_are_in_the_file_and_no_others(mebqat_run: Path) -> None:
    run = Run.open(mebqat_run)
    model, wanted = load_adaptive(run), run.load_weights(Stage.NORMS)
    select(model, Selection(default=LayerBits(2, 4)))
    picked = [s for s in switches(model) if isinstance(s, SwitchNorm)]
    assert {s.key for s in picked} == {"w2a4"} and all(s.is_exact for s in picked)
    mean = cast(Tensor, picked[0].picked.running_mean)
    assert mean.equal(wanted[f"w2a4/{_path(model, picked[0])}.running_mean"])
    settle(model)
    assert not switches(model)


def _path(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def test_float_weights_are_islands(mebqat_run: Path, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    options = ExportOptions(bits="w32a8", allow_float=True)
    export(mebqat_run, options, path, force=False)
    (record,) = check([path], source, ["reference", "ort"], None, Silent())
    report = record.to_json()
    assert report["parity"]["ort"]["mismatched"] == 0
    assert report["layers"]["one.0"] == [32, 8] and report["layers"]["first.0"] == [8, 8]
    assert len(report["islands"]) == 2


@pytest.mark.parametrize(("bits", "message"), [
    ("w5a8,one.0=w8a8", "bits 5 were not trained; trained: 8, 4, 2, 1"),
    ("w5a8", "w5a8 was not trained; its grids can be interpolated between those of 4 and 8"),
    ("w4a5", "w4a5 was not trained; its grids can be interpolated between those of 4 and 8"),
    ("w1a4", "BatchNorm statistics were never taken at these bits; they were at w8a8, w1a1"),
    ("w4a4,two.0=w2a4", "BatchNorm statistics were never taken at these bits"),
    ("w32a8", "layer one.0: weights of 32 bits would run in floating point"),
    ("w4a16", "weights of 4 bits with an input of 16: integer layers read up to 8 bits"),
])  # fmt: skip
def test_export_refuses_what_was_not_trained(
    mebqat_run: Path, tmp_path: Path, bits: str, message: str
) -> None:
    path = tmp_path / "model.onnx"
    done = run_qtool(
        "export", mebqat_run, "--target", "onnx", "--bits", bits, "-o", path, "--no-witness"
    )
    assert (done.code, done.err.count("\n")) == (2, 1) and message in done.err, done.err
    assert not path.exists()


def test_a_pair_without_statistics_gets_them_on_the_spot(
    mebqat_run: Path, source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(mebqat_run, run)
    asked = ("export", run, "--target", "onnx", "--bits", "w1a4", "-o", tmp_path / "m.onnx")
    done = run_qtool(*asked, "--calibration", source)
    assert done.code == 0 and "statistics at w1a4: 20 images of cifar10" in done.err, done.err
    (record,) = check([tmp_path / "m.onnx"], source, ["reference", "ort"], None, Silent())
    report = record.to_json()
    assert report["parity"]["ort"]["mismatched"] == 0
    assert report["layers"]["one.0"] == [1, 4]
    old, new = (Run.open(folder).load_weights(Stage.NORMS) for folder in (mebqat_run, run))
    assert all(new[name].equal(value) for name, value in old.items())
    assert {name.split("/")[0] for name in new.keys() - old.keys()} == {"w1a4"}


@pytest.mark.parametrize(("bits", "message"), [
    ("w4a2", "w4a2: 2-bit inputs were not trained, and are not between two widths above 1"),
    ("w4a4,one.0=w2a4", "--calibration: statistics are of one pair for all layers, such as"),
    ("w16a4", "layer one.0: weights of 16 bits would run in floating point (--allow-float"),
])  # fmt: skip
def test_what_cannot_be_calibrated(
    mebqat_run: Path, source: Path, tmp_path: Path, bits: str, message: str
) -> None:
    before = (mebqat_run / "norms.safetensors").read_bytes()
    done = run_qtool(
        "export", mebqat_run, "--target", "onnx", "--bits", bits, "-o", tmp_path / "m.onnx",
        "--calibration", source,
    )  # fmt: skip
    assert (done.code, done.err.count("\n")) == (2, 1) and message in done.err, done.err
    assert (mebqat_run / "norms.safetensors").read_bytes() == before


def test_what_is_refused_after_calibration_leaves_the_run_as_it_was(
    mebqat_run: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: object) -> None:
        raise KeyboardInterrupt

    before = (mebqat_run / "norms.safetensors").read_bytes()
    asked = ("export", mebqat_run, "--target", "onnx", "--bits", "w1a4", "--calibration")
    output = ("-o", tmp_path / "m.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(OnnxTarget, "write", stopping)
        done = run_qtool(*asked, source, *output)
    assert done.code == 130 and "statistics at w1a4" in done.err, done.err
    assert (mebqat_run / "norms.safetensors").read_bytes() == before
    done = run_qtool(*asked, tmp_path / "nope", *output)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "nope does not exist: give the folder of cifar10" in done.err
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(("method", "call"), [
    ("save_checkpoint", 1), ("save_weights", 1),
    pytest.param("save_weights", 2, marks=pytest.mark.nightly),
    pytest.param("save_weights", 3, marks=pytest.mark.nightly),
    pytest.param("drop_checkpoint", 1, marks=pytest.mark.nightly),
])  # fmt: skip
def test_a_stopped_run_continues_to_the_same_bytes(
    source: Path,
    mebqat_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    call: int,
) -> None:
    owner = loop if method == "save_checkpoint" else Run
    calls, original = iter(range(100)), getattr(owner, method)

    def stopping(*args: object) -> object:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, stopping)
        assert train(source, tmp_path / "run").code == 130
    done = train(source, tmp_path / "run", resume=True)
    assert done.code == 0, done.err
    for name in ("float.safetensors", "model.safetensors", "norms.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (mebqat_run / name).read_bytes(), name


@pytest.mark.parametrize(("settings", "message"), [
    (("weight_bits=16,32",), "setting weight_bits: got 16,32, expected a candidate of 1 to 8"),
    (("activation_bits=9",), "recipe setting activation_bits: got 9, expected 1 to 8"),
    (("weight_bits=8,4,8",), "recipe setting weight_bits: 8 is given twice"),
    (("weight_bits=8,4",), "1-bit inputs go with none of the weights' 8,4 bits: add 1 to"),
    (("weight_bits=4,1", "activation_bits=8"), "1-bit weights go with 1-bit or float inputs"),
    (("weight_bits=1,4", "activation_bits=8,1"), "w1a8, the first integers of both, is what"),
    (("teacher=float",), "frontend mebqat teaches itself, from its float task"),
    (("tasks=1",), "recipe setting tasks: got 1, expected 2 to 64"),
])  # fmt: skip
def test_refused_settings_write_nothing(
    source: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    done = train(source, tmp_path / "run", *settings)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err and not (tmp_path / "run").exists()


def test_a_run_is_not_replaced_by_what_starts_from_it(mebqat_run: Path, source: Path) -> None:
    before = {path: path.read_bytes() for path in mebqat_run.iterdir()}
    words = (word for each in (*SMALL, f"weights={mebqat_run}") for word in ("--set", each))
    done = run_qtool(
        "train", "mebqat_mobilenet_v2_small_cifar", "--data", source, "--out", mebqat_run,
        *words, "--force",
    )  # fmt: skip
    assert done.code == 2 and "which --force would replace" in done.err, done.err
    assert {path: path.read_bytes() for path in mebqat_run.iterdir()} == before


@pytest.mark.parametrize("quantizer", ["dorefa", "any_precision"])
def test_codes_of_nine_bits_are_evaluated_as_they_are(quantizer: str) -> None:
    """8-bit DoReFa codes reach 255, more than int8 holds: against sums of floats."""
    spec = QuantSpec((8,), (7, 8), quantizer=quantizer, ends_keep=True)
    model = prepare(same_network(), spec)
    x = to_batch(tiny_data().test, slice(0, 16))[0]
    calibrate(model, x)
    for bits in (7, 8):
        select_pair(model, LayerBits(bits, 8))
        with torch.no_grad():
            exact = model.eval()(x)
        close = model(x).detach()  # with gradients no integers are followed
        assert float((exact - close).abs().max() / close.abs().max()) < 0.05, bits


@pytest.mark.parametrize("quantizer", [
    "sat", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("dorefa", "pact")),
    "any_precision",
])  # fmt: skip
def test_published_quantizers_train_and_are_exact(
    source: Path, tmp_path: Path, quantizer: str
) -> None:
    ends = ("first_last_bits=32",) if quantizer in ("any_precision", "dorefa") else ()
    done = train(source, tmp_path / "run", f"quantizer={quantizer}", *ends)
    assert done.code == 0, done.err
    path = tmp_path / "model.onnx"
    export(tmp_path / "run", ExportOptions(bits="w2a3", allow_float=bool(ends)), path, False)
    (record,) = check([path], source, ["reference", "ort"], None, Silent())
    assert record.to_json()["parity"]["ort"]["mismatched"] == 0


def test_eight_bits_of_dorefa_need_nine(source: Path, tmp_path: Path) -> None:
    done = train(source, tmp_path / "run", "quantizer=any_precision", "epochs=0")
    assert done.code == 0, done.err
    done = run_qtool(
        "export", tmp_path / "run", "--target", "onnx", "--bits", "w8a8", "-o",
        tmp_path / "model.onnx",
    )  # fmt: skip
    assert done.code == 2 and "8-bit DoReFa weights are odd integers" in done.err, done.err


def test_the_network_of_a_run_has_grids_of_integer_candidates(mebqat_run: Path) -> None:
    model = build_prepared(Run.open(mebqat_run))
    first, *inner, last = quant_layers(model)
    assert {layer.weight_quant.bits for layer in inner} == {(8, 4, 2, 1)}
    assert {layer.input_quant.bits for layer in inner} == {(8, 4, 3, 1)}
    assert first.weight_quant.keeps_bits and last.weight_quant.keeps_bits
