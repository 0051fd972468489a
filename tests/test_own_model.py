"""A user's own network, unchanged, from training to parity: no qtool type in it."""

import json
import sys
from pathlib import Path

import pytest
from conftest import TINY, run_qtool

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.gate = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Linear(16, classes)

    def forward(self, x):
        x = nn.functional.hardswish(self.stem(x))
        gate = torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        y = torch.cat([x * gate, nn.functional.silu(x)], 1)
        y = nn.functional.avg_pool2d(torch.relu(self.norm(y)), 2)
        return self.last(y.mean((2, 3)))


def net(in_channels, classes):
    return Net(in_channels, classes)
"""


def test_train_export_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "userpackage.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "userpackage:net"
    run = run_qtool(
        "train", "metamix_fashion", "--model", name, "--epochs", 1, *TINY, "--out", "run"
    )
    assert run.code == 0, run.err
    for target, file in (("onnx", "m.onnx"), ("tvm", "m.so")):
        made = run_qtool("export", "run", "--target", target, "--bits", "w4a4", "-o", file)
        assert made.code == 0, made.err
    checked = run_qtool("check", "m.onnx", "m.so", "--require-parity", "--json", "r.json")
    assert checked.code == 0, checked.err
    report = json.loads(Path("r.json").read_text())
    assert report["float_ops"] == {"reference": {}, "ort": {}, "tvm": {}}
    assert report["parity"]["tvm"]["compared"] > 0
