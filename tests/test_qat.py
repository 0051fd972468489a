"""Frontend qat: train at fixed bits, export, resume; what it refuses."""

import json
from pathlib import Path

import pytest
from cifar import write_cifar10
from conftest import Result, run_qtool
from torch import nn

from qtool.checking.check import check
from qtool.core.progress import Silent
from qtool.data import DATASETS
from qtool.export.export import ExportOptions, export
from qtool.models import MODELS, model_factory
from qtool.networks import build_prepared
from qtool.nn.control import quantizers
from qtool.recipes import RECIPES, load_recipe
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.override import override
from qtool.training import loop

SMALL = (
    "model=test_qat:network", "batch_size=20", "norm_batches=2", "calibration_images=20",
    "float_epochs=1", "epochs=2",
)  # fmt: skip
ENDS = ("network.0", "network.7")


def network(in_channels: int = 3, classes: int = 10) -> nn.Module:
    """Three quantized layers: a run of it takes a second."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    )  # fmt: skip


def train(data: Path, out: Path, *settings: str, resume: bool = False) -> Result:
    """Run the CIFAR-10 recipe on a small network, unless `settings` say otherwise."""
    chosen = (word for each in (*SMALL, *settings) for word in ("--set", each))
    more = ("--resume",) if resume else ()
    return run_qtool(
        "train", "qat_resnet20_cifar", "--data", data, "--out", out, *chosen, *more
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 files of a few random images."""
    return write_cifar10(tmp_path_factory.mktemp("source"), images=40)


@pytest.fixture(scope="module")
def qat_run(source: Path) -> Path:
    """A tiny run at W4A4: real in every link."""
    folder = source / "run"
    done = train(source, folder)
    assert done.code == 0, done.err
    assert f"next: qtool export {folder} --target onnx -o model.onnx" in done.out
    return folder


@pytest.fixture(scope="module")
def mixed_bits(qat_run: Path) -> Path:
    """A bits.json with other bits in every other layer, the last one's too."""
    content = json.loads((qat_run / "bits.json").read_text())
    for index, name in enumerate(content["layers"]):
        content["layers"][name] = [3, 5] if index % 2 else [2, 8]
    path = qat_run.parent / "mixed.json"
    path.write_text(json.dumps(content))
    return path


def exact_layers(run: Path, source: Path) -> dict[str, list[int]]:
    """Export and check `run`; return the bits of the file, in which nothing differs."""
    path = run.parent / f"{run.name}.onnx"
    export(run, ExportOptions(), path, force=False)
    (record,) = check([path], source, ["reference", "ort"], run, Silent())
    report = record.to_json()
    assert report["parity"]["ort"]["mismatched"] == 0
    measured = Run.open(run).metrics("qat")[-1]["test_accuracy"]
    assert report["accuracy"]["fake_quant"] == measured
    layers: dict[str, list[int]] = report["layers"]
    return layers


def test_a_run_is_complete_and_exports_exactly(qat_run: Path, source: Path) -> None:
    layers = exact_layers(qat_run, source)
    wanted = {name: [8, 8] if name in ENDS else [4, 4] for name in layers}
    assert layers == wanted and set(ENDS) < set(layers)
    run = Run.open(qat_run)
    assert all(len(q.bits) == 1 for q in quantizers(build_prepared(run)))
    assert [len(run.metrics(phase)) for phase in ("float", "qat")] == [2, 3]
    assert not run.path("checkpoint.safetensors").exists()


def test_weights_and_steps_are_trained_and_the_normalisation_is_not(qat_run: Path) -> None:
    run = Run.open(qat_run)
    before, after = run.load_weights(Stage.FLOAT), run.load_weights(Stage.MODEL)
    layer = "network.3"
    assert not after[f"{layer}.layer.weight"].equal(before[f"{layer}.weight"])
    assert after["normalise.norm.running_mean"].tolist() == pytest.approx(run.config.mean)
    assert after["normalise.norm.running_var"].sqrt().tolist() == pytest.approx(run.config.std)


def test_bits_of_a_file_and_weights_of_a_run(
    qat_run: Path, mixed_bits: Path, source: Path, tmp_path: Path
) -> None:
    settings = (f"bits={mixed_bits}", f"weights={qat_run}", "epochs=0")
    done = train(source, tmp_path / "run", *settings)
    assert done.code == 0, done.err
    run, asked = Run.open(tmp_path / "run"), json.loads(mixed_bits.read_text())["layers"]
    assert {n: [b.weight, b.activation] for n, b in run.selection().layers.items()} == asked
    old = Run.open(qat_run).load_weights(Stage.FLOAT)
    assert all(v.equal(old[k]) for k, v in run.load_weights(Stage.FLOAT).items())
    assert exact_layers(tmp_path / "run", source) == asked


@pytest.mark.parametrize(("bits", "ends", "inner"), [
    ("w4a4,network.[37]=w2a3", ([8, 8], [2, 3]), [2, 3]),
    ("network.*=w3a5,network.7=w2a6", ([3, 5], [2, 6]), [3, 5]),
])  # fmt: skip
def test_patterns_give_every_layer_its_bits(
    source: Path,
    tmp_path: Path,
    bits: str,
    ends: tuple[list[int], list[int]],
    inner: list[int],
) -> None:
    """Also for a quantizer that has no 8-bit weights."""
    settings = (f"bits={bits}", "quantizer=dorefa", "epochs=0", "float_epochs=0")
    done = train(source, tmp_path / "run", *settings)
    assert done.code == 0, done.err
    layers = json.loads((tmp_path / "run" / "bits.json").read_text())["layers"]
    assert layers == {ENDS[0]: ends[0], "network.3": inner, ENDS[1]: ends[1]}


def test_the_float_network_may_be_the_teacher(
    qat_run: Path, source: Path, tmp_path: Path
) -> None:
    models = []
    for index, teacher in enumerate(("float", str(qat_run), "")):
        out = tmp_path / str(index)
        done = train(source, out, f"weights={qat_run}", f"teacher={teacher}", "epochs=1")
        assert done.code == 0, done.err
        models.append((out / "model.safetensors").read_bytes())
    assert models[0] == models[1] != models[2]


@pytest.mark.parametrize(("method", "call"), [
    ("save_bits", 0), ("save_checkpoint", 0), ("drop_checkpoint", 0), ("save_checkpoint", 1),
    ("save_weights", 1),
])  # fmt: skip
def test_a_stopped_run_continues_to_the_same_weights(
    source: Path,
    qat_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    call: int,
) -> None:
    """Stop before the call number `call` of what writes; go on from there."""
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
    for name in ("float.safetensors", "model.safetensors", "bits.json"):
        assert (tmp_path / "run" / name).read_bytes() == (qat_run / name).read_bytes(), name


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_what_there_is(name: str) -> None:
    config = override(load_recipe(name), [])
    assert config.name == name and config.model in MODELS and config.dataset in DATASETS


def spoilt(path: Path, target: Path, **layers: object) -> Path:
    """Write bits file `path` with other `layers` to `target`; None removes one."""
    content = json.loads(path.read_text())
    for key, bits in layers.items():
        name = key.replace("__", ".")
        content["layers"].pop(name, None)
        if bits is not None:
            content["layers"][name] = bits
    target.write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(("settings", "message"), [
    (("bits=eight",), "setting bits: 'eight': neither a pattern like w4a4 nor an existing"),
    (("bits=w9a4",), "w9a4: weight bits 9 not supported, expected 1 to 8"),
    (("bits=w8a8", "quantizer=dorefa"), "layer network.3: dorefa weights of 8 bits are odd i"),
    (("quantizer=lsc",), "unknown recipe setting quantizer 'lsc': did you mean lsq"),
    (("bits={other}",), "other.json 'network.conv9': did you mean network."),
    (("bits={fewer}",), "fewer.json does not name 1 layers (network.7) of model te"),
    (("bits={wide}",), "layer network.7: weights of 4 bits with an input of 32: integer lay"),
    (("weights=nowhere.pt",), "weights nowhere.pt: no such file"),
    (("weights={w}",), "w.safetensors does not fit Sequential"),
    (("weights={source}",), "run recipe not found"),
    (("weight_bits=4",), "activation_bits and weight_bits: frontend qat has one width"),
    (("teacher=nowhere.pt",), "weights nowhere.pt: no such file"),
    (("epochs=-1",), "recipe setting epochs: got -1, expected 0 to"),
    (("lr=fast",), "--set lr=fast: expected float, such as 0.01"),
])  # fmt: skip
def test_refusals_write_nothing(
    source: Path, mixed_bits: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    paths = {
        "other": spoilt(mixed_bits, tmp_path / "other.json", network__conv9=[4, 4]),
        "fewer": spoilt(mixed_bits, tmp_path / "fewer.json", network__7=None),
        "wide": spoilt(mixed_bits, tmp_path / "wide.json", network__7=[4, 32]),
        "w": tmp_path / "w.safetensors", "source": source,
    }  # fmt: skip
    from safetensors.torch import save_file

    save_file(model_factory("resnet20")().state_dict(), paths["w"])
    done = train(source, tmp_path / "run", *(text.format(**paths) for text in settings))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_search_is_refused(qat_run: Path, source: Path) -> None:
    refused = run_qtool("search", qat_run, "--bops", "1G", "--force", "--data", source)
    assert refused.code == 2 and "frontend qat, whose bits are fixed" in refused.err


def test_fashion_learns_at_four_bits(tmp_path: Path) -> None:
    settings = ("train_images=1536", "float_epochs=2", "epochs=1", "norm_batches=8")
    chosen = (word for each in settings for word in ("--set", each))
    done = run_qtool("train", "qat_fashion", "--out", tmp_path / "run", *chosen)
    assert done.code == 0, done.err
    run = Run.open(tmp_path / "run")
    results = [run.metrics(phase)[-1]["test_accuracy"] for phase in ("float", "qat")]
    assert min(results) > 60, results


def test_another_quantizer_trains_and_exports_exactly(source: Path, tmp_path: Path) -> None:
    done = train(source, tmp_path / "run", "quantizer=sat", "bits=w2a3")
    assert done.code == 0, done.err
    assert exact_layers(tmp_path / "run", source)["network.3"] == [2, 3]


def test_a_layer_may_stay_float(mixed_bits: Path, source: Path, tmp_path: Path) -> None:
    bits = spoilt(mixed_bits, tmp_path / "float.json", network__3=[32, 32])
    done = train(source, tmp_path / "run", f"bits={bits}")
    assert done.code == 0, done.err
    path = tmp_path / "model.onnx"
    export(tmp_path / "run", ExportOptions(allow_float=True), path, force=False)
    (record,) = check([path], source, ["ort"], tmp_path / "run", Silent())
    report = record.to_json()
    assert report["accuracy"]["ort"] == report["accuracy"]["fake_quant"]
    assert [island["name"] for island in report["islands"]] == ["network.3"]
