"""Clips from annotation files to integers: losses of clips, and a ResNet-18 end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_qtool
from torch import Tensor, nn
from videos import DEMO, needs_demo, write_video

from qtool.checking.check import check
from qtool.core.progress import Silent
from qtool.data import load_dataset
from qtool.data.batches import first_images
from qtool.settings.override import override
from qtool.settings.qat import QatConfig
from qtool.training.losses import Objective, distillation_loss, task_loss

SMALL = (
    "image_size=32", "frames=3", "batch_size=2", "augment=flip", "float_epochs=0", "epochs=1",
    "calibration_images=4", "norm_batches=1",
)  # fmt: skip


class Taught(nn.Module):
    """A teacher whose logits are an image's first pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :2]


def test_a_teacher_answers_a_clip_with_the_mean_of_its_frames() -> None:
    config = override(QatConfig("tiny", "none", "none"), ["distill_weight=0.25"])
    x = torch.rand(6, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    labels, logits = torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    found = Objective(config, lambda shape, classes: Taught()).on(x, labels)(logits)
    taught = x.reshape(2, 3, 2).mean(1)
    soft = distillation_loss(logits, taught, config.temperature)
    assert torch.allclose(found, 0.75 * task_loss(config, logits, labels) + 0.25 * soft)


def test_images_for_first_grids_are_counted_as_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    for split in ("train", "val"):
        (tmp_path / f"{split}_list.txt").write_text("a.mp4 0\n" * 4)
    source = load_dataset("video_files", tmp_path, 32, 3).train
    assert [len(first_images(source, count)) for count in (1, 3, 4, 99)] == [3, 3, 6, 12]


def write_activitynet(folder: Path) -> None:
    """Two segments of a video are for training, two of another for testing."""
    clips = [
        {"label": name, "segment": [at, at + 1]} for name, at in (("jump", 0), ("run", 1))
    ]
    database = {
        "mmaction2_test": {"subset": "training", "annotations": [*clips, *clips]},
        "mmaction2_demo": {"subset": "validation", "annotations": clips},
    }
    (folder / "activity_net.v1-3.min.json").write_text(json.dumps({"database": database}))


def write_kinetics(folder: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    train = "jump,mmaction2_test,0,9,t\nrun,mmaction2_demo,0,9,t\n"
    (folder / "train.csv").write_text(f"{head}{train * 2}")
    (folder / "val.csv").write_text(f"{head}{train}")


@needs_demo
@pytest.mark.parametrize(
    ("frontend", "dataset", "settings", "bits"),
    [
        ("qat", "activitynet", ("bits=w4a4",), ()),
        (
            "mebqat", "kinetics", ("weight_bits=8,4,32", "activation_bits=8,4,32"),
            ("--bits", "w4a4"),
        ),
    ],
)  # fmt: skip
def test_a_resnet18_trains_on_clips_and_is_exported(
    tmp_path: Path,
    frontend: str,
    dataset: str,
    settings: tuple[str, ...],
    bits: tuple[str, ...],
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    {"activitynet": write_activitynet, "kinetics": write_kinetics}[dataset](data)
    (data / "videos").symlink_to(DEMO)
    run, model = tmp_path / "run", tmp_path / "model.onnx"
    words = (w for each in (f"dataset={dataset}", *SMALL, *settings) for w in ("--set", each))
    trained = run_qtool(
        "train", frontend, "--model", "resnet18", "--data", data, "--out", run, *words
    )
    assert trained.code == 0, trained.err
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line and np.isfinite(line["loss"]) for line in losses), losses
    exported = run_qtool("export", run, "--target", "onnx", *bits, "-o", model, "--data", data)
    assert exported.code == 0, exported.err
    assert "witness: 0 of " in exported.err
    (record,) = check([model], data, ["reference", "ort"], run, Silent())
    # Two clips of three frames: the answers of both runtimes are means of integers.
    assert record.images == 2 and record.parity["ort"].mismatched == 0
    assert record.accuracy["ort"] == record.accuracy["fake_quant"]
    evaluated = run_qtool("eval", run, *bits, "--data", data)
    assert evaluated.code == 0, evaluated.err
    found = json.loads((run / "eval.json").read_text())["pairs"]["w4a4"]
    assert found["accuracy"] == record.accuracy["ort"]
