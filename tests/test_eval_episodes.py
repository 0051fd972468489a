"""`qtool eval` of few-shot runs: accuracies over episodes of new classes."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, run_qtool
from fewshot_sets import pn_config, tiny_fewshot
from test_cli_errors import refused
from test_maml import maml_config
from tiny_training import tiny_run

from qtool.core.progress import Silent
from qtool.core.selection import LayerBits
from qtool.frontends.mebqat.pn import PrototypeTester
from qtool.runs.run import Run
from qtool.training.frontend import load_frontend

DOREFA = ("weight_quantizer=dorefa",)
DATA = ("--data", "fewshot_sets:tiny_fewshot")


def evaluate(run: Path, *args: object) -> Result:
    return run_qtool("eval", run, *DATA, *args)


def content(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval.json").read_text())
    return found


@pytest.fixture(scope="module")
def pn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, data = pn_config("test_bits="), tiny_fewshot()
    run = Run.create(tmp_path_factory.mktemp("pn") / "run", config, data, False, False)
    load_frontend(config.frontend).train(run, data, Silent(), False)
    return run.folder


def test_a_pair_has_the_accuracy_of_its_exported_file(pn_run: Path) -> None:
    done = evaluate(pn_run, "--bits", "w2a4,fp", "--episodes", 8, "--transductive", "--force")
    assert done.code == 0, done.err
    found = content(pn_run)
    assert found["question"]["episodes"] == 8 and found["question"]["runtime"] == "torch"
    tester = PrototypeTester(Run.open(pn_run), tiny_fewshot())
    _, device = tester.deployed(LayerBits(2, 4), 8)
    pair = found["pairs"]["w2a4"]
    assert device is not None
    assert (pair["accuracy"], pair["interval"]) == (device.mean, device.interval)
    batches = tester.transductive(LayerBits(2, 4), 8)
    own = (pair["transductive"], pair["transductive_interval"])
    assert own == (batches.mean, batches.interval)
    assert f"({batches.text()})".replace("± ", "±") in done.out
    accuracy, none = tester.deployed(LayerBits(32, 32), 8)
    assert none is None and found["pairs"]["fp"]["accuracy"] == accuracy.mean
    assert "8 episodes, 3-way 3-shot, of fewshot_sets" in done.out
    assert f"±{device.interval:.2f}" in done.out
    assert "half the 95 % interval over episodes" in done.out
    assert (pn_run / "eval.png").stat().st_size > 1000


def test_what_is_known_is_not_measured_again(
    pn_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[LayerBits] = []
    original = PrototypeTester.deployed

    def counted(tester: PrototypeTester, bits: LayerBits, episodes: int) -> Any:
        measured.append(bits)
        return original(tester, bits, episodes)

    monkeypatch.setattr(PrototypeTester, "deployed", counted)
    for bits in ("w4a4", "w4a4,w8a2"):
        assert evaluate(pn_run, "--bits", bits, "--episodes", 4, "--force").code == 0
    assert measured == [LayerBits(4, 4), LayerBits(8, 2)]
    said = "4 episodes, 3-way 3-shot, of fewshot_sets:tiny_fewshot, asked for are 5 episodes"
    refused(evaluate(pn_run, "--bits", "w4a4", "--episodes", 5), said)


def test_savings_are_counted(pn_run: Path) -> None:
    assert evaluate(pn_run, "--bits", "w8a8", "--episodes", 2, "--force").code == 0
    savings, config = content(pn_run)["savings"], pn_config()
    assert savings["pairs"] == len(config.pairs()) == 13
    assert savings["adaptive_passes"] == 4 * 8 and savings["dedicated_passes"] == 13 * 8
    assert pn_config("inner_loop=none").passes == (1, 1)
    assert maml_config().passes == (2 * 4, 2 * 4)


def test_images_or_episodes(pn_run: Path, tmp_path: Path) -> None:
    said = "learns its classes from episodes; give --episodes N"
    refused(evaluate(pn_run, "--images", 5), said)
    plain = tiny_run(tmp_path / "run").folder
    (plain / "model.safetensors").write_bytes(b"")
    command = ("--data", "tiny_training:tiny_data", "--episodes", 5)
    refused(run_qtool("eval", plain, *command), "knows its classes; measure it on --images")


def test_a_classifier_is_fine_tuned_on_every_episode(tmp_path: Path) -> None:
    config, data = maml_config("test_bits=", "epochs=1", *DOREFA), tiny_fewshot()
    run = Run.create(tmp_path / "run", config, data, False, False)
    load_frontend(config.frontend).train(run, data, Silent(), False)
    bits = "w4a4,w2a2,w8a8"
    done = evaluate(run.folder, "--bits", bits, "--episodes", 3, "--transductive")
    assert done.code == 0, done.err
    pairs = content(run.folder)["pairs"]
    assert list(pairs) == ["w2a2", "w4a4", "w8a8"]
    # int8 does not hold DoReFa's codes of 8 bits: there are no integers to speak of.
    assert "integers of each episode's network" in pairs["w4a4"]["reason"]
    assert "have no integer form" in pairs["w8a8"]["reason"]
    assert all(0 <= pair["transductive"] <= 100 for pair in pairs.values())
