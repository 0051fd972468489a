"""A user's mistake: one clear line, exit 2, nothing written, no traceback."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Result, run_qtool
from safetensors.numpy import save_file

from qtool.data.fashion_mnist import EMBEDDED
from qtool.data.idx import encode_idx


def refused(result: Result, *words: str) -> None:
    """Assert exit 2 and a single line that holds all `words`."""
    assert result.code == 2, result.out + result.err
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("qtool: error: "), result.err
    assert all(word in lines[0] for word in words), lines[0]


def test_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run_qtool("train", "metamix_fashoin", "--out", out)
    refused(result, "unknown recipe 'metamix_fashoin'", "did you mean metamix_fashion")
    assert not out.exists()


def test_unknown_model_names_the_nearest() -> None:
    refused(run_qtool("bops", "mobilenetv2"), "unknown model", "mobilenet_v2")


def test_unknown_setting_and_wrong_type(tmp_path: Path) -> None:
    base = ("train", "metamix_fashion", "--out", tmp_path / "run", "--set")
    refused(run_qtool(*base, "finetune_epoch=3"), "unknown recipe setting", "finetune_epochs")
    refused(run_qtool(*base, "seed=one"), "--set seed=one: expected int")
    refused(run_qtool(*base, "seed"), "expected key=value")
    refused(run_qtool(*base, "batch_size=0"), "batch_size", "got 0")
    refused(run_qtool(*base, "activation_bits=16,8"), "got 16, expected 1 to 8")
    refused(run_qtool(*base, "model=resnet81"), "unknown model 'resnet81'", "resnet18")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", ["1K", "900G"])
def test_impossible_budget_says_what_is_reachable(run_copy: Path, budget: str) -> None:
    before = (run_copy / "bits.json").read_bytes()
    result = run_qtool("search", run_copy, "--bops", budget, "--force")
    refused(result, "reachable: 38.759 MBOPs (38,759,424) to 99.938 MBOPs (99,938,304)")
    assert (run_copy / "bits.json").read_bytes() == before


@pytest.mark.parametrize("budget", ["five", "-3G", "0", "5.3Q", "nan"])
def test_malformed_budget(searched_run: Path, budget: str) -> None:
    result = run_qtool("search", searched_run, f"--bops={budget}")
    refused(result, f"budget '{budget}'", "5.3G, 300M or 1.2e9")


def data_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "data"))


def test_missing_data_file(tmp_path: Path) -> None:
    data = data_copy(tmp_path)
    (data / "train-labels-idx1-ubyte.xz").unlink()
    result = run_qtool("train", "metamix_fashion", "--data", data, "--out", tmp_path / "run")
    refused(result, "data file missing", "train-labels-idx1-ubyte", ".gz")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_truncated_data_file(tmp_path: Path, keep: int) -> None:
    data = data_copy(tmp_path)
    path = data / "t10k-images-idx3-ubyte.xz"
    path.write_bytes(path.read_bytes()[:keep])
    result = run_qtool("train", "metamix_fashion", "--data", data, "--out", tmp_path / "run")
    refused(result, str(path))


def test_missing_data_folder(tmp_path: Path) -> None:
    absent = tmp_path / "nowhere"
    result = run_qtool("train", "metamix_fashion", "--data", absent, "--out", tmp_path / "r")
    refused(result, str(absent), "does not exist")


def test_full_data_set_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QTOOL_DATA", raising=False)
    result = run_qtool(
        "train", "metamix_fashion", "--set", "dataset=fashion_mnist", "--out", tmp_path / "run"
    )
    refused(result, "--data DIR or set QTOOL_DATA")


def test_existing_outputs_are_kept_without_force(run_copy: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_text("precious")
    export = ("export", run_copy, "--target", "onnx", "-o", output)
    refused(run_qtool(*export), str(output), "exists already", "--force")
    assert output.read_text() == "precious"
    refused(run_qtool("train", "metamix_fashion", "--out", run_copy), "exists already")
    refused(run_qtool("search", run_copy, "--bops", "48M"), "exists already")
    (tmp_path / "check.json").write_text("{}")
    refused(run_qtool("demo", "--out", tmp_path), "exists already")
    assert run_qtool(*export, "--force").code == 0


def test_truncated_checkpoint(run_copy: Path, tmp_path: Path) -> None:
    path = run_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    output = tmp_path / "model.onnx"
    result = run_qtool("export", run_copy, "--target", "onnx", "-o", output)
    refused(result, str(path), "truncated or damaged")
    assert list(tmp_path.glob("model*")) == []


def test_foreign_checkpoint(run_copy: Path, tmp_path: Path) -> None:
    path = run_copy / "model.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    result = run_qtool("export", run_copy, "--target", "onnx", "-o", tmp_path / "m.onnx")
    refused(result, str(path), "was not written by qtool")


def test_pickle_is_never_loaded(run_copy: Path, tmp_path: Path) -> None:
    import os
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    (run_copy / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    result = run_qtool("export", run_copy, "--target", "onnx", "-o", tmp_path / "m.onnx")
    refused(result, "truncated or damaged")
    assert not (tmp_path / "exploded").exists()


def test_run_of_a_newer_version(run_copy: Path, tmp_path: Path) -> None:
    path = run_copy / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99, "qtool": "9.0"}))
    result = run_qtool("export", run_copy, "--target", "onnx", "-o", tmp_path / "m.onnx")
    refused(result, "written by qtool 9.0", "format 99 is newer", "upgrade qtool")


def test_damaged_recipe_and_bits(run_copy: Path, tmp_path: Path) -> None:
    export = ("export", run_copy, "--target", "onnx", "-o", tmp_path / "m.onnx")
    (run_copy / "bits.json").write_text('{"format": 1, "layers": {"features.0.0": [4]}}')
    refused(run_qtool(*export), "layer features.0.0", "got [4], expected [w, a]")
    (run_copy / "bits.json").write_text("{")
    refused(run_qtool(*export), "not readable JSON")
    (run_copy / "recipe.json").write_text('{"format": 1}')
    refused(run_qtool(*export), "format 1 has other grids", "train it again")
    (run_copy / "recipe.json").write_text('{"format": 2}')
    refused(run_qtool(*export), "recipe.json is damaged", "recipe")


def test_bits_that_were_not_trained(searched_run: Path, tmp_path: Path) -> None:
    export = ("export", searched_run, "--target", "onnx", "-o", tmp_path / "m.onnx", "--bits")
    refused(run_qtool(*export, "w4a5"), "activation bits 5 were not trained")
    refused(run_qtool(*export, "w4a99"), "activation bits 99 not supported, expected 1 to 8")
    refused(run_qtool(*export, "nothing.json"), "neither a pattern like w4a4 nor an existing")


def test_images_of_another_size(searched_run: Path, tmp_path: Path) -> None:
    for split in ("train", "t10k"):
        images = encode_idx(np.zeros((4, 32, 32), np.uint8))
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(
            encode_idx(np.zeros(4, np.uint8))
        )
    search = ("search", searched_run, "--bops", "48M", "--force", "--data", tmp_path)
    refused(run_qtool(*search), "images (1, 32, 32)", "trained on 10 of (1, 28, 28)")


def test_no_run_there(tmp_path: Path) -> None:
    export = ("--target", "onnx", "-o", tmp_path / "m.onnx")
    refused(run_qtool("export", tmp_path / "nope", *export), "no such directory")
    refused(run_qtool("export", tmp_path, *export), "run recipe not found")


def test_untrained_run_says_how_to_continue(run_copy: Path) -> None:
    (run_copy / "meta.safetensors").unlink()
    result = run_qtool("search", run_copy, "--bops", "48M", "--force")
    refused(result, "no meta.safetensors", "--resume continues it")


def test_resume_with_other_settings(run_copy: Path) -> None:
    result = run_qtool("train", "metamix_fashion", "--resume", "--out", run_copy)
    refused(result, "holds other settings than this command")
    result = run_qtool("search", run_copy, "--bops", "49M", "--resume")
    refused(result, "answers metamix at 48.000 MBOPs, not metamix at 49.000 MBOPs")


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Pretend that the TVM packages have `versions`."""

    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr("qtool.core.tvm_env.metadata.version", version)


def test_wrong_ffi_is_refused_before_it_crashes(
    searched_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.15.post2"})
    output = tmp_path / "model.so"
    result = run_qtool("export", searched_run, "--target", "tvm", "-o", output)
    refused(result, "apache-tvm-ffi 0.1.15.post2", "expected 0.1.14.post1", "pip install")
    assert not output.exists()


def test_without_tvm_only_the_tvm_target_fails(
    searched_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, {})
    tvm = run_qtool("export", searched_run, "--target", "tvm", "-o", tmp_path / "model.so")
    refused(tvm, "needs apache-tvm, not installed", "pip install apache-tvm==0.27.0.post1")
    path = tmp_path / "model.onnx"
    assert run_qtool("export", searched_run, "--target", "onnx", "-o", path).code == 0
    result = run_qtool("check", path)
    assert result.code == 0, result.err


def test_check_of_files_that_are_none(exported: Path, tmp_path: Path) -> None:
    refused(run_qtool("check", tmp_path / "absent.onnx"), "absent.onnx does not exist")
    refused(run_qtool("check", tmp_path / "model.pth"), "unknown kind of file")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((exported / "model.onnx").read_bytes()[:5000])
    refused(run_qtool("check", broken), "broken.onnx")
    library = tmp_path / "broken.so"
    library.write_bytes((exported / "model.so").read_bytes()[:5000])
    refused(run_qtool("check", library), "broken.so", "not a TVM module")


def test_check_with_unknown_or_unfit_runtime(exported: Path) -> None:
    model = exported / "model.onnx"
    refused(run_qtool("check", model, "--runtime", "reference,otr"), "unknown runtime 'otr'")
    refused(run_qtool("check", model, "--runtime", "tvm"), "runtime tvm needs model.so")


def test_wrong_options_are_one_line_too(tmp_path: Path) -> None:
    refused(run_qtool("trian"), "trian")
    refused(run_qtool("export", tmp_path, "--target", "tensorrt", "-o", "x"), "tensorrt")
    refused(run_qtool("bops", "resnet18", "--input", "224"), "CHANNELSxHEIGHTxWIDTH")
    refused(
        run_qtool("bops", "resnet18", "--input", "3x2x2", "--bits", "w9a4"), "weight bits 9"
    )


def test_negative_epochs_are_refused(tmp_path: Path) -> None:
    result = run_qtool("train", "metamix_fashion", "--epochs", -1, *TINY, "--out", tmp_path)
    refused(result, "-1")
