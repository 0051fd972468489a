"""Post-training quantization: grids, corrections, the run it leaves, and what it refuses."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from cifar import write_cifar10, write_photographs
from conftest import Result, export_without_torch, run_qtool
from torch import nn

from passes.adaptive.resolve_bits import ResolveBits
from qtool.checking.check import check
from qtool.core.dialect import constant
from qtool.core.errors import UserError
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection, read_selection
from qtool.data import load_dataset
from qtool.export.export import ExportOptions, export
from qtool.frontends.ptq.calibration import Observed, fit_glue, fit_layers, observe
from qtool.frontends.ptq.correction import correct, float_outputs
from qtool.models import model_factory
from qtool.models.normalised import Normalised
from qtool.networks import load_deployed, load_float, split_corrections
from qtool.nn.control import quant_layers, quantizers, select, selected_bits
from qtool.nn.grid_fit import cover
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.report.table import rows
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override
from qtool.settings.ptq import PtqConfig
from qtool.settings.registry import from_json, to_json
from qtool.training.evaluation import accuracy

SMALL = [
    "--set", "calibration_images=32", "--set", "correction_images=16",
    "--set", "compare_images=10",
]  # fmt: skip
QTOOL_DATA = Path(os.environ.get("QTOOL_DATA", "nowhere"))


def scatter(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics as training leaves them, not 0 and 1."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 files of random images, and float weights of a ResNet-20."""
    folder = write_cifar10(tmp_path_factory.mktemp("source"))
    model = scatter(model_factory("resnet20")(in_channels=3, classes=10))
    torch.save({"state_dict": model.state_dict()}, folder / "w.th")
    return folder


def train(source: Path, out: Path, *more: object) -> Result:
    return run_qtool(
        "train", "ptq_resnet20_cifar", "--data", source, "--out", out, *SMALL, *more
    )


@pytest.fixture(scope="module")
def ptq_run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ptq") / "run"
    done = train(source, folder, "--set", f"weights={source / 'w.th'}")
    assert done.code == 0, done.err
    assert f"next: qtool export {folder} --target onnx" in done.out
    for choice in ("float", "mse", "minmax", "percentile"):
        assert choice in done.out
    return folder


# --- the network normalises its images ---


def test_normalisation_is_the_first_layer_and_stays() -> None:
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    inner = scatter(model_factory("resnet20")(in_channels=3, classes=10))
    model = Normalised(inner, mean, std)
    x = torch.rand(2, 3, 32, 32)
    by_hand = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(model.eval()(x), inner(by_hand))
    before = {k: v.clone() for k, v in model.normalise.state_dict().items()}
    model.train()(x)
    assert inner.training and not model.normalise.training
    assert all(v.equal(before[k]) for k, v in model.normalise.state_dict().items())


def test_normalisation_needs_a_value_per_channel(source: Path, tmp_path: Path) -> None:
    settings = ("--set", f"weights={source / 'w.th'}", "--set", "mean=0.5", "--set", "std=0.5")
    done = train(source, tmp_path / "run", *settings)
    assert (done.code, (tmp_path / "run").exists()) == (2, False)
    assert "mean and std: got 1 values, the images have 3 channels" in done.err


# --- grids ---


def test_a_grid_covers_its_range() -> None:
    unsigned = FakeQuantizer("a", "glue", (8,), signed=False)
    cover(unsigned, 0.0, 5.1)
    assert unsigned.scale(8).item() == pytest.approx(5.1 / 255)
    centred = FakeQuantizer("b", "glue", (4,), signed=True)
    cover(centred, -1.0, 3.5)
    assert centred.scale(4).item() == pytest.approx(0.5)  # codes -8 to 7
    shifted = FakeQuantizer("c", "glue", (8,), signed=True, asymmetric=True)
    cover(shifted, -1.0, 4.1)
    assert shifted.zero_points == (50,) and shifted.limits(8) == (50, 205)
    assert shifted.scale(8).item() == pytest.approx(0.02)
    fixed = FakeQuantizer("d", "input", (8,), signed=False, step=1 / 255)
    cover(fixed, 0.0, 9.0)
    assert fixed.scale(8).item() == pytest.approx(1 / 255)


def test_samples_come_from_every_column() -> None:
    # Only the last column is not 0; a stride that divides the row length never sees it.
    x = torch.zeros(64, 4, 16, 16)
    x[..., 15] = 1.0
    observed = Observed(torch.inf, -torch.inf, [])
    observed.add(x, 1000)
    assert 1 / 32 < observed.values().mean().item() < 1 / 8
    assert (observed.low, observed.high) == (0.0, 1.0)


def test_choices_of_glue_grids() -> None:
    quantizer = FakeQuantizer("g", "glue", (8,), signed=False)
    torch.manual_seed(0)
    values = torch.rand(100_000)
    values[5] = 100.0
    observed = Observed(torch.inf, -torch.inf, [])
    observed.add(values, len(values))
    steps, errors = {}, {}
    for choice in ("minmax", "percentile", "mse"):
        fit_glue({quantizer: observed}, choice, 99.9)
        steps[choice] = quantizer.scale(8).item()
        errors[choice] = (quantizer.quantize_at(values, 8) - values).square().sum().item()
    assert steps["minmax"] == pytest.approx(100 / 255)
    assert steps["percentile"] == pytest.approx(1 / 255, rel=0.01)
    assert errors["mse"] <= min(errors.values())


def prepared(images: torch.Tensor) -> nn.Module:
    """A small network with fitted grids at 8 and 2 bits."""
    model = scatter(model_factory("mobilenet_v2_small")(in_channels=1, classes=10))
    graph = prepare(model, QuantSpec((8, 2), (8, 2), asymmetric=True))
    seen = observe(graph, images, 4)
    fit_layers(graph, seen)
    fit_glue(seen, "mse", 100.0)
    return graph


def test_every_grid_is_fitted_at_every_candidate() -> None:
    graph = prepared(torch.rand(8, 1, 28, 28))
    for quantizer in quantizers(graph):
        if isinstance(quantizer.step, nn.Parameter):
            assert (quantizer.step < 1.0).all(), quantizer.name
    chosen = selected_bits(graph, Selection(default=LayerBits(2, 8)))
    assert chosen["features.1.conv.0.0"] == LayerBits(2, 8)
    assert chosen["features.0.0"] == LayerBits(8, 8)


# --- corrections ---


def layer_errors(kind: str) -> tuple[list[float], list[float]]:
    """Return every layer's largest error of a channel's mean, and its squared error.

    Both are relative to the spread of the layer's output.
    """
    torch.manual_seed(0)
    images = torch.rand(16, 1, 28, 28)
    graph = prepared(images)
    wanted = float_outputs(graph, images)
    select(graph, Selection(default=LayerBits(2, 8)))
    correct(graph, images, wanted, kind)
    got: dict[nn.Module, torch.Tensor] = {}
    for layer in quant_layers(graph):
        layer.register_forward_hook(lambda module, _, y: got.update({module: y.clone()}))
    with torch.no_grad():
        graph(images)
    pairs = [(got[layer], wanted[layer]) for layer in quant_layers(graph)]
    means = [
        ((y - r).mean((0, *range(2, y.ndim))).abs().max() / r.std()).item() for y, r in pairs
    ]
    return means, [((y - r).square().mean() / r.var()).item() for y, r in pairs]


def test_corrections_restore_means_and_affine_is_nearest() -> None:
    results = {kind: layer_errors(kind) for kind in ("none", "bias", "affine")}
    # What is left: biases are rounded afterwards, which moves a few codes further on.
    assert max(*results["bias"][0], *results["affine"][0]) < 0.02
    assert max(results["none"][0]) > 0.2
    errors = {kind: np.mean(squares) for kind, (_, squares) in results.items()}
    assert errors["affine"] < errors["bias"] < errors["none"]


# --- the run ---


def test_run_is_complete(ptq_run: Path, source: Path) -> None:
    text = (ptq_run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["phase"] for line in lines] == ["float", "glue", "ptq"]
    assert lines[2]["bits"] == "w8a8" and 0 <= lines[2]["test_accuracy"] <= 100
    choices = lines[1]["choices"]
    assert [row["glue"] for row in choices] == ["float", "mse", "minmax", "percentile"]
    assert {row["images"] for row in choices} == {10}
    run = Run.open(ptq_run)
    assert isinstance(run.config, PtqConfig)
    bits = run.selection().layers
    assert len(bits) == 20 and set(bits.values()) == {LayerBits(8, 8)}
    again = load_float(run).network.state_dict()
    assert all(v.equal(again[k]) for k, v in torch.load(source / "w.th")["state_dict"].items())


def test_every_preset_has_its_own_correction(ptq_run: Path) -> None:
    run = Run.open(ptq_run)
    own = load_deployed(run, run.selection()).state_dict()
    assert all(v.equal(own[k]) for k, v in run.load_weights(Stage.MODEL).items())
    biases = {}
    for bits in ("w8a8", "w6a6", "w4a8", "w4a4"):
        state = load_deployed(run, read_selection(bits)).state_dict()
        changed = [k for k in own if not own[k].equal(state[k])]
        assert all(k.endswith(("norm.weight", "norm.bias", "layer.bias")) for k in changed)
        assert bool(changed) == (bits != "w8a8")
        biases[bits] = tuple(state["network.layer1.0.conv1.norm.bias"].tolist())
    assert len(set(biases.values())) == 4
    # No preset: corrected as for the run's own bits.
    other = load_deployed(run, read_selection("w3a8")).state_dict()
    assert all(v.equal(own[k]) for k, v in other.items())


MIXED = "w8a8,network.layer1.*=w4a4,network.layer2.0.conv1=w4a8,network.layer3.*=w3a3"


@pytest.mark.nightly
def test_three_selections_from_one_graph_without_torch(
    ptq_run: Path, source: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(ptq_run, tmp_path / "run"))
    (run / "adaptive.onnx").unlink(missing_ok=True)
    first = tmp_path / "first.onnx"
    export(run, ExportOptions(bits="w4a4"), first, force=False)
    kept = (run / "adaptive.onnx").read_bytes()
    outputs = {bits: tmp_path / f"{i}.onnx" for i, bits in enumerate(("w4a4", "w6a6", MIXED))}
    export_without_torch(run, outputs)
    assert (run / "adaptive.onnx").read_bytes() == kept
    assert outputs["w4a4"].read_bytes() == first.read_bytes()
    assert len({path.read_bytes() for path in outputs.values()}) == 3
    (record,) = check([outputs[MIXED]], source, ["reference", "ort"], run, Silent())
    report = record.to_json()
    assert report["parity"]["ort"]["mismatched"] == 0
    assert report["layers"]["network.layer2.0.conv1"] == [4, 8]


def test_each_layer_of_a_mixed_selection_takes_the_row_of_its_bits(ptq_run: Path) -> None:
    run = Run.open(ptq_run)
    export(ptq_run, ExportOptions(), ptq_run / "own.onnx", force=True)
    model = ir.from_proto(onnx.load(ptq_run / "adaptive.onnx"))
    ResolveBits(read_selection(MIXED))(model)
    deployed = load_deployed(run, read_selection(MIXED)).state_dict()
    own = run.load_weights(Stage.MODEL)
    rows = {"w8a8": own, **split_corrections(run.load_weights(Stage.CORRECTIONS))}
    taken = dict.fromkeys(rows, 0)
    for name in rows["w4a4"]:
        # Layers of w3a3 have no row of their own.
        key = "w4a4" if "layer1." in name else "w8a8"
        key = "w4a8" if "layer2.0.conv1." in name else key
        wanted = rows[key][name]
        assert deployed[name].equal(wanted), name
        assert np.array_equal(constant(model.graph.initializers[name]), wanted.numpy()), name
        taken[key] += 1
    assert taken["w4a4"] == 12 and taken["w4a8"] == 2 and taken["w6a6"] == 0
    assert not any(node.op_type == "Norm" for node in model.graph)


@pytest.mark.parametrize("bits", [None, "w4a4"])
def test_exports_are_exact(
    ptq_run: Path, source: Path, tmp_path: Path, bits: str | None
) -> None:
    path = tmp_path / "model.onnx"
    export(ptq_run, ExportOptions(bits=bits), path, force=False)
    (record,) = check([path], source, ["reference", "ort"], ptq_run, Silent())
    report = record.to_json()
    assert report["parity"]["ort"]["mismatched"] == 0
    assert report["layers"]["network.conv1"] == [8, 8]
    assert report["glue"] == Run.open(ptq_run).metrics("glue")[0]
    shown = dict(rows(record))
    assert shown["glue minmax"].endswith("lost to the grids")
    wanted = [8, 8] if bits is None else [4, 4]
    assert report["layers"]["network.layer2.0.conv1"] == wanted


def test_weights_from_a_run(ptq_run: Path, source: Path, tmp_path: Path) -> None:
    settings = ("--set", f"weights={ptq_run}", "--set", "bits=w4a4", "--set", "presets=w4a4")
    done = train(source, tmp_path / "run", *settings)
    assert done.code == 0, done.err
    first, second = Run.open(ptq_run), Run.open(tmp_path / "run")
    old, new = (run.load_weights(Stage.FLOAT) for run in (first, second))
    assert all(v.equal(new[k]) for k, v in old.items())
    # The same images, bits and grids: a preset's correction there is the run's own here.
    wanted = load_deployed(first, read_selection("w4a4")).state_dict()
    assert all(v.equal(wanted[k]) for k, v in second.load_weights(Stage.MODEL).items())
    resumed = train(source, tmp_path / "run", *settings, "--resume")
    assert resumed.code == 0 and "glue" not in resumed.out
    refused = run_qtool("search", ptq_run, "--bops", "1G", "--force", "--data", source)
    assert refused.code == 2 and "ptq, which searches no bits" in refused.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "needs float weights: --set weights=FILE"),
        (("weights=nowhere.pt",), "weights nowhere.pt: no such file"),
        (("weights={w}", "model=resnet32"), "w.th does not fit CifarResNet: 60 missing"),
        (("weights={w}", "bits=w5a8"), "bits and presets: w5a8 is not among the candidates"),
        (("weights={w}", "presets=w4a4,w8a1"), "presets: w8a1 is not among the candidates"),
        (("weights={w}", "bits=eight"), "bits: got 'eight', expected such as w4a8"),
        (("weights={w}", "glue=maxmin"), "unknown recipe setting glue 'maxmin': did you mean"),
        (("weights={w}", "correction=x"), "known: affine, bias, none"),
        (("weights={w}", "percentile=0.999"), "percentile: got 0.999, expected 50 to 100"),
        (("weights={w}", "mean=0.1,x"), "--set mean=0.1,x: expected comma-separated floats"),
        (("weights={w}", "mean=0.1"), "mean and std: got 1 and 3 values"),
        (("weights={w}", "quantizer=sat"), "sat weights have another size than the float"),
    ],
)
def test_refusals_write_nothing(
    source: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    texts = [text.format(w=source / "w.th") for text in settings]
    done = train(source, tmp_path / "run", *(x for text in texts for x in ("--set", text)))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
    assert not (tmp_path / "run").exists()


# --- settings of several frontends ---


def test_configs_go_round_by_frontend() -> None:
    for config in (
        PtqConfig("a", "resnet20", "cifar10", mean=(0.5,), std=(0.25,)),
        MetaMixConfig("b", "resnet20", "cifar10", activation_bits=(8, 2)),
    ):
        assert from_json(json.loads(json.dumps(to_json(config))), "r") == config
    old = to_json(MetaMixConfig("c", "resnet18", "fashion_mnist"))
    for newer in ("mean", "std", "asymmetric", "frontend"):
        del old[newer]
    assert from_json(old, "r") == MetaMixConfig("c", "resnet18", "fashion_mnist")
    with pytest.raises(UserError, match="r: unknown frontend 'x': made by a newer qtool"):
        from_json(old | {"frontend": "x"}, "r")
    with pytest.raises(UserError, match="unknown recipe settings glue"):
        from_json(old | {"glue": "mse"}, "r")


def test_settings_have_the_types_of_their_class() -> None:
    config = PtqConfig("a", "resnet20", "cifar10")
    assert override(config, ["weight_bits=8,3"]).weight_bits == (8, 3)
    assert override(config, ["presets=w8a8,w2a2"]).presets == ("w8a8", "w2a2")
    assert override(config, ["presets="]).presets == ()
    changed = override(config, ["mean=0.5,1", "std=1,2"])
    assert (changed.mean, changed.std) == ((0.5, 1.0), (1.0, 2.0))
    assert replace(changed, mean=(), std=()) == config


# --- real images ---


@pytest.mark.skipif(
    not (QTOOL_DATA / "cifar10_webp").is_dir(),
    reason="QTOOL_DATA holds no cifar10_webp folder and published weights",
)
@pytest.mark.nightly
def test_published_weights_keep_their_accuracy(tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "data", QTOOL_DATA / "cifar10_webp", 300)
    weights = QTOOL_DATA / "weights" / "resnet20-12fca82f.th"
    done = run_qtool(
        "train", "ptq_resnet20_cifar", "--data", data, "--out", tmp_path / "run",
        "--set", f"weights={weights}", "--set", "compare_images=1",
        "--set", "calibration_images=128", "--set", "correction_images=128",
    )  # fmt: skip
    assert done.code == 0, done.err
    path = tmp_path / "model.onnx"
    export(tmp_path / "run", ExportOptions(), path, force=False)
    (record,) = check([path], data, ["ort"], tmp_path / "run", Silent())
    report = record.to_json()
    # 274 of these 300 are right in floating point (91.73 % of all 10,000).
    assert report["accuracy"]["float"] == pytest.approx(100 * 274 / 300)
    assert abs(report["accuracy"]["ort"] - report["accuracy"]["float"]) <= 1.0
    four = load_deployed(Run.open(tmp_path / "run"), read_selection("w4a4"))
    assert accuracy(four, load_dataset("cifar10", data).test) >= 88.0
