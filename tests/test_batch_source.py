"""Training on batches that are not images: a tiny episode source, interrupted and resumed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from test_runs import Assassin, Killed, outcome
from tiny_training import tiny_run
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.progress import Progress, Silent
from qtool.data.batch_source import BatchSource, parts_of, to_device
from qtool.runs.stage import Stage
from qtool.training.averages import Averages
from qtool.training.phase import Phase
from qtool.training.phases import run_phase
from qtool.training.update import Pass, Update

TASKS, WAYS, SHOTS, SIZE = 2, 3, 2, 5


class Labelled(NamedTuple):
    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Episodes:
    """A batch of tasks; every tensor's first axis is that of tasks."""

    support: Labelled
    query: Labelled
    name: str = ""


class EpisodeSource:
    """Classes are directions; which ones an episode has is drawn."""

    seed = 5

    def __len__(self) -> int:
        return 4

    def epoch(self, index: int, start: int = 0) -> Iterator[Episodes]:
        for step in range(start, len(self)):
            generator = torch.Generator().manual_seed(1000 * index + step)
            means = torch.randn(TASKS, WAYS, 1, SIZE, generator=generator)
            labels = torch.arange(WAYS)[:, None].expand(TASKS, WAYS, SHOTS).flatten(1)

            def some() -> Labelled:
                noise = torch.randn(TASKS, WAYS, SHOTS, SIZE, generator=generator)  # noqa: B023
                return Labelled((means + noise / 2).flatten(1, 2), labels)  # noqa: B023

            yield Episodes(some(), some(), f"{index}/{step}")


def train(folder: Path, progress: Progress, resume: bool = False, *settings: str) -> list[str]:
    """Train prototypes for two epochs; return the names of the episodes."""
    run = tiny_run(folder, "checkpoint_steps=3", "optimizer=adam", *settings, resume=resume)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, 8), nn.Dropout(0.2), nn.Linear(8, 4))
    update, seen = Update(run.config, model, 0.05), []  # type: ignore[arg-type]

    def losses(part: Episodes) -> Iterator[Pass]:
        for task in range(len(part.support.x)):
            embedded = model(part.support.x[task]).reshape(WAYS, SHOTS, -1)
            distances = torch.cdist(model(part.query.x[task]), embedded.mean(1)) ** 2
            labels = part.query.labels[task]
            yield Pass(functional.cross_entropy(-distances, labels), -distances, labels)

    def step(batch: Episodes, averages: Averages) -> str:
        seen.append(batch.name)
        update(losses, batch, averages)
        return batch.name

    source: BatchSource[Episodes] = EpisodeSource()
    phase = Phase("episodes", 2, model, [update.optimizer], step)
    run_phase(phase, run, source, progress, resume)
    run.save_weights(Stage.MODEL, model.state_dict())
    return seen


@pytest.mark.parametrize("settings", [(), ("accumulate=2", "ema=0.9")])
def test_episodes_continue_from_any_step_in_the_same_bits(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    names = train(tmp_path / "whole", Silent(), False, *settings)
    assert names == [f"{epoch}/{step}" for epoch in (1, 2) for step in range(4)]
    # Before the first checkpoint of an epoch, after it, and in the second.
    for steps, left in ((2, 8), (4, 5), (5, 4), (8, 1)):
        folder = tmp_path / str(steps)
        with pytest.raises(Killed):
            train(folder, Assassin(steps), False, *settings)
        assert train(folder, Silent(), True, *settings) == names[-left:]
        assert outcome(folder) == outcome(tmp_path / "whole")


def test_every_tensor_of_a_batch_moves_and_all_else_stays() -> None:
    batch = next(EpisodeSource().epoch(1))
    moved = to_device(batch, torch.device("meta"))
    assert isinstance(moved, Episodes) and isinstance(moved.query, Labelled)
    assert {t.device.type for pair in (moved.support, moved.query) for t in pair} == {"meta"}
    assert moved.name == batch.name and batch.query.x.device.type == "cpu"
    pair = to_device((batch.query.x, [batch.query.x]), torch.device("meta"))
    assert pair[0].device.type == "meta" and pair[1][0].device.type == "cpu"


def test_parts_are_cut_along_the_first_axis_in_order() -> None:
    batch = next(EpisodeSource().epoch(1))
    first, second = parts_of(batch, 2)
    assert torch.equal(torch.cat([first.query.x, second.query.x]), batch.query.x)
    assert torch.equal(second.support.labels, batch.support.labels[1:])
    assert parts_of(batch, 1) == [batch] and first.name == batch.name
    with pytest.raises(ValueError, match="a tensor of 2 does not divide into 3"):
        parts_of(batch, 3)
    clip = (torch.arange(8), torch.arange(4))  # two frames a label
    assert [part[0].tolist() for part in parts_of(clip, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
