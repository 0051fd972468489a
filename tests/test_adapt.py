"""A few-shot run learns a user's classes: prototypes as a layer, and the files it becomes."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import Result, run_qtool
from fewshot_sets import SHAPE, patterns, pn_config, tiny_fewshot, write_support
from tiny_training import tiny_run

from qtool.core.errors import UserError
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection
from qtool.data import load_dataset
from qtool.data.batches import to_batch
from qtool.data.images import Images, to_float
from qtool.data.support import support_name
from qtool.networks import load_deployed, load_float
from qtool.nn.control import select
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.prototype_head import fit_head, head_alone, head_of, head_weights
from qtool.nn.prototypes import prototype_logits, prototypes
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.training.evaluation import predict
from qtool.training.frontend import load_frontend

WAYS, SHOTS = 5, 3
BITS = "w4a4"


def halves() -> tuple[Images, Images]:
    """Return support images and others of five classes that no training saw."""
    images = patterns(WAYS, SHOTS + 40, 9)
    support = np.arange(len(images)) % (SHOTS + 40) < SHOTS
    return tuple(Images(images.pixels[m], images.labels[m]) for m in (support, ~support))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def pn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pn") / "run"
    config, data = pn_config("epochs=8", "episodes=10", "lr=0.005"), tiny_fewshot()
    run = Run.create(folder, config, data, False, False)
    load_frontend("mebqat_pn").train(run, data, Silent(), False)
    return folder


@pytest.fixture(scope="module")
def support(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_support(tmp_path_factory.mktemp("support"), halves()[0])


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_support(tmp_path_factory.mktemp("queries"), halves()[1])


def adapt(run: Path, support: Path, out: Path, *args: object) -> Result:
    chosen = args or ("--bits", BITS)
    return run_qtool("adapt", run, "--support", support, *chosen, "-o", out)


@pytest.fixture(scope="module")
def adapted(pn_run: Path, support: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "run"
    done = adapt(pn_run, support, out)
    assert done.code == 0, done.err
    assert f"5 classes from 15 images at {BITS}; " in done.out
    assert "next: qtool export" in done.out
    return out


# --- prototypes as a layer ---


def test_the_layer_has_the_argmin_of_the_distances() -> None:
    torch.manual_seed(0)
    centres, embedded = torch.randn(7, 16) + 3, torch.randn(500, 16) + 3
    weight, bias = head_weights(centres)
    logits = embedded @ weight.T + bias
    distances = prototype_logits(embedded, centres)
    assert torch.equal(logits.argmax(1), distances.argmax(1))
    # Up to what all classes share, they are the distances; the largest is never below 0.
    shared = (logits - distances).double()
    assert torch.allclose(shared, shared[:, :1].expand_as(shared), atol=1e-3)
    assert torch.allclose(logits.double().mean(1), torch.zeros(500).double(), atol=1e-4)
    assert (logits.max(1).values >= 0).all()


def test_the_layer_of_integers_answers_like_the_distances() -> None:
    """Centred, 8 bits of logits tell classes apart that are a hundredth of the range apart."""
    torch.manual_seed(0)
    grid = FakeQuantizer("e", "output", (8,), False, step=0.05)
    embedded = (torch.rand(2000, 32) * 255).round() * 0.05
    labels = torch.arange(10).repeat_interleave(5)
    support = (embedded[labels] + (torch.rand(50, 32) * 41).round() * 0.05).clamp(0, 12.75)
    centres = prototypes(support, labels, 10)
    head = head_alone(32, 10, grid)
    fit_head(head, centres, support)
    with torch.no_grad():
        answers = head(embedded)
    distances = prototype_logits(embedded, centres)
    top = distances.topk(2).values
    clear = (top[:, 0] - top[:, 1]) > 0.02 * (distances.max() - distances.min())
    differ = answers.argmax(1) != distances.argmax(1)
    assert clear.sum() > 1000 and not differ[clear].any()
    assert answers.min() >= 0


# --- the run ---


def test_embeddings_are_the_integers_of_the_run(pn_run: Path, adapted: Path) -> None:
    old = load_deployed(Run.open(pn_run), Selection(default=LayerBits(4, 4)))
    new = load_deployed(Run.open(adapted), Selection())
    seen: list[torch.Tensor] = []
    head = head_of(new)
    head.input_quant.register_forward_hook(lambda _m, _i, result: seen.append(result.codes))
    x, _ = to_batch(halves()[1], slice(0, 50))
    with torch.no_grad():
        embedded = old.eval()(x)
        new.eval()(x)
    scale = head.input_quant.scale(8).item()
    assert torch.equal(seen[0], (embedded / scale).round())
    assert embedded.std() > 0


def test_a_run_says_what_it_is(pn_run: Path, adapted: Path) -> None:
    run = Run.open(adapted)
    assert json.loads((adapted / "classes.json").read_text()) == {
        "classes": [f"class{number}" for number in range(WAYS)]
    }
    bits = {(pair.weight, pair.activation) for pair in run.selection().layers.values()}
    assert bits == {(4, 4), (8, 8)} and run.classes == WAYS
    assert run.config.frontend == "adapted" and run.config.dataset == "support_grey"
    floats = load_float(run)
    with torch.no_grad():
        assert floats(torch.rand(2, *SHAPE)).shape == (2, WAYS)


def test_the_exported_file_answers_with_the_nearest_class(
    pn_run: Path, adapted: Path, support: Path, queries: Path, tmp_path: Path
) -> None:
    model, library = tmp_path / "model.onnx", tmp_path / "model.so"
    for target, path in (("onnx", model), ("tvm", library)):
        done = run_qtool("export", adapted, "--target", target, "-o", path)
        assert done.code == 0, done.err
        assert "witness: 0 of " in done.err
    checked = run_qtool(
        "check", model, library, "--data", queries, "--reference", adapted, "--require-parity",
        "--json", tmp_path / "check.json",
    )  # fmt: skip
    assert checked.code == 0, checked.err
    record = json.loads((tmp_path / "check.json").read_text())
    assert all(record["parity"][name]["mismatched"] == 0 for name in ("ort", "tvm"))
    images = load_dataset("support_grey", queries, SHAPE[-1]).test
    x = to_float(images.load(slice(None)))
    session = onnxruntime.InferenceSession(model)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})
    # The classes that float distances of the quantized embeddings give.
    old = load_deployed(Run.open(pn_run), Selection(default=LayerBits(4, 4)))
    known = load_dataset("support_grey", support, SHAPE[-1]).train
    labels = torch.from_numpy(known.labels)
    centres = prototypes(predict(old, known), labels, WAYS)
    nearest = prototype_logits(predict(old, images), centres).argmax(1).numpy()
    differ = int((logits.argmax(1) != nearest).sum())
    assert differ <= 2 and len(nearest) == 200
    right = 100 * float((logits.argmax(1) == images.labels).mean())
    assert record["accuracy"]["ort"] == pytest.approx(right) and right > 60


def test_a_file_is_checked_on_its_own_classes_only(
    adapted: Path, queries: Path, tmp_path: Path
) -> None:
    model, library = tmp_path / "model.onnx", tmp_path / "model.so"
    for target, path in (("onnx", model), ("tvm", library)):
        assert run_qtool("export", adapted, "--target", target, "-o", path).code == 0
    others, more = tmp_path / "others", tmp_path / "more"
    for folder in (others, more):
        shutil.copytree(queries, folder)
    (others / "class3").rename(others / "zebra")
    shutil.copytree(more / "class0", more / "class7")
    for file in (model, library):
        for folder, said in (
            (others, "has 5 classes (class0, class1, class2, class4, zebra), the model tells"),
            (more, "has 6 classes (class0, class1, class2, class3, class4, class7), the mod"),
        ):
            refused = run_qtool("check", file, "--data", folder)
            assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
            assert said in refused.err and "apart 5 (class0, class1," in refused.err
        assert run_qtool("check", file, "--data", queries).code == 0
    measured = run_qtool("eval", adapted, "--data", others)
    assert (
        measured.code == 2 and "has classes class0, class1, class2, class4, z" in measured.err
    )
    assert not (adapted / "eval.json").exists()


@pytest.mark.parametrize("bits", ["w2a2", "w8a8"])
def test_other_pairs(bits: str, pn_run: Path, support: Path, tmp_path: Path) -> None:
    assert adapt(pn_run, support, tmp_path / "run", "--bits", bits).code == 0
    done = run_qtool("export", tmp_path / "run", "--target", "onnx", "-o", tmp_path / "m.onnx")
    assert done.code == 0, done.err
    assert "witness: 0 of " in done.err


_MORE_SETTINGS = (
    ("mean=0.4", "std=0.3"),
    ("activation_quantizer=pact", "weight_quantizer=lsq", "first_last_bits=8"),
    ("glue_bits=7",),
    ("weight_quantizer=double_rounding",),
)


@pytest.mark.parametrize("settings", [
    ("model=fewshot_sets:Residual", "shared_steps=false", "asymmetric=true"),
    # Its outputs are as many as the classes that it was trained on.
    ("model=test_maml:classifier",),
    *(pytest.param(more, marks=pytest.mark.nightly) for more in _MORE_SETTINGS),
])  # fmt: skip
def test_other_networks_and_grids(
    settings: tuple[str, ...], support: Path, tmp_path: Path
) -> None:
    config, data = pn_config("epochs=1", "test_bits=w4a4", *settings), tiny_fewshot()
    run = Run.create(tmp_path / "run", config, data, False, False)
    frontend = load_frontend("mebqat_pn")
    frontend.check(config, data)
    frontend.train(run, data, Silent(), False)
    done = adapt(run.folder, support, tmp_path / "new")
    assert done.code == 0, done.err
    old = load_deployed(run, Selection(default=LayerBits(4, 4)))
    new = load_deployed(Run.open(tmp_path / "new"), Selection())
    embedded, queries = predict(old, halves()[1]), halves()[1]
    seen: list[torch.Tensor] = []
    grid = head_of(new).input_quant
    grid.register_forward_hook(lambda _m, _i, result: seen.append(result.plain()))
    predict(new, queries)
    assert torch.allclose(torch.cat(seen), embedded, rtol=1e-6, atol=0) and len(embedded) > 1
    command = ("--target", "onnx", "-o", tmp_path / "m.onnx")
    exported = run_qtool("export", tmp_path / "new", *command)
    assert exported.code == 0, exported.err
    assert "witness: 0 of " in exported.err


# --- refusals ---


@pytest.mark.parametrize(("bits", "said"), [
    ("w3a4", "w3a4 is not among the candidates: there are weights of 2, 4, 8, FP bits"),
    ("fp", "--bits 'fp': expected one pair of at most 8 bits, such as w2a2"),
    ("w4a4,w2a2", "expected one pair of at most 8 bits"),
    ("four", "'four' is not like w4a4 or fp"),
])  # fmt: skip
def test_bits_that_it_does_not_have(
    bits: str, said: str, pn_run: Path, support: Path, tmp_path: Path
) -> None:
    refused = adapt(pn_run, support, tmp_path / "run", "--bits", bits)
    assert refused.code == 2 and refused.err.count("\n") == 1 and said in refused.err
    assert not (tmp_path / "run").exists()


def test_folders_with_too_little_in_them(pn_run: Path, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        result = adapt(pn_run, folder, tmp_path / "run")
        assert result.code == 2 and result.err.count("\n") == 1
        assert not (tmp_path / "run").exists()
        return result.err

    folder = tmp_path / "support"
    assert "does not exist, expected CLASS/* in it" in refused(folder)
    folder.mkdir()
    assert "holds no folders, expected one for each class" in refused(folder)
    write_support(folder, patterns(1, 2, 0))
    assert "1 class (class0), expected 2 or more" in refused(folder)
    (folder / "empty").mkdir()
    assert "empty holds no images" in refused(folder)
    (folder / "empty" / "0.png").write_text("text")
    assert "0.png is damaged: no image format" in refused(folder)


def test_a_run_there_stays(pn_run: Path, support: Path, adapted: Path) -> None:
    before = (adapted / "model.safetensors").read_bytes()
    refused = adapt(pn_run, support, adapted)
    assert refused.code == 2 and "exists already" in refused.err
    assert adapt(pn_run, support, adapted, "--bits", BITS, "--force").code == 0
    assert (adapted / "model.safetensors").read_bytes() == before


def test_the_source_is_not_replaced(pn_run: Path, support: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in pn_run.iterdir()}
    link = tmp_path / "link"
    link.symlink_to(pn_run)
    for out in (pn_run / "x" / "..", link):
        refused = adapt(pn_run, support, out, "--bits", BITS, "--force")
        assert refused.code == 2 and refused.err.count("\n") == 1
        assert "recipe setting source: " in refused.err
        assert "which --force would replace" in refused.err
        assert {path.name: path.read_bytes() for path in pn_run.iterdir()} == before


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.MODEL])
def test_an_interruption_leaves_nothing(
    stage: Stage, pn_run: Path, support: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Run.save_weights

    def interrupted(run: Run, saved: Stage, state: dict[str, torch.Tensor]) -> None:
        save(run, saved, state)
        if saved is stage:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_weights", interrupted)
    stopped = adapt(pn_run, support, tmp_path / "a" / "run")
    assert stopped.code == 130 and "interrupted; " in stopped.err
    assert not (tmp_path / "a").exists()


def test_a_run_without_prototypes_is_not_exported(pn_run: Path, tmp_path: Path) -> None:
    refused = run_qtool("export", pn_run, "--target", "onnx", "-o", tmp_path / "m.onnx")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "is an embedding without prototypes: give it classes with qtool" in refused.err
    assert "--bits w2a2 -o" in refused.err  # which its recipe tests
    assert not (tmp_path / "m.onnx").exists()


def test_a_run_of_another_frontend_learns_no_classes(support: Path, tmp_path: Path) -> None:
    refused = adapt(tiny_run(tmp_path / "run").folder, support, tmp_path / "x")
    assert refused.code == 2 and "belongs to frontend metamix, not to mebqat_" in refused.err


def test_an_adapted_run_is_neither_trained_nor_searched(adapted: Path) -> None:
    frontend, run = load_frontend("adapted"), Run.open(adapted)
    with pytest.raises(UserError, match="runs of frontend adapted are made by qtool adapt"):
        frontend.check(run.config, tiny_fewshot())
    with pytest.raises(UserError, match="was adapted to one pair of bits: adapt"):
        frontend.search_start(run)


def test_images_are_decoded_as_those_of_training() -> None:
    assert support_name("omniglot_fewshot", (1, 28, 28)) == "support_drawings"
    assert support_name("miniimagenet_fewshot", (3, 84, 84)) == "support_colour"
    assert support_name("mine:data", (1, 8, 8)) == "support_grey"
    with pytest.raises(UserError, match=r"images are \(1, 8, 9\), support images are"):
        support_name("mine:data", (1, 8, 9))


def test_selecting_nothing_is_the_adapted_pair(adapted: Path) -> None:
    run = Run.open(adapted)
    model = load_deployed(run, run.selection())
    one = predict(model, halves()[1])
    select(model, Selection())
    assert torch.equal(one, predict(model, halves()[1]))
