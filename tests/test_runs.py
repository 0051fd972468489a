"""Runs: the same bits again, from any moment on; damaged files and full disks."""

import pickle
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_training import STEPS, tiny_config, tiny_data, tiny_run, train_tiny

from qtool.core.errors import UserError
from qtool.core.progress import Silent
from qtool.models.weights import load_weights
from qtool.runs.attempt import begun
from qtool.tensor_file import load_tensors, save_tensors

# Every kind of state that a checkpoint has to hold.
MANNERS = [
    (),
    ("optimizer=adamw", "ema=0.9", "clip_norm=0.5"),
    ("optimizer=adam", "accumulate=2", "schedule=multistep"),
]


class Killed(BaseException):
    """As sudden as a signal: nothing catches it."""


class Assassin(Silent):
    """Ends the process after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, text: str) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def outcome(folder: Path) -> tuple[bytes, str]:
    return (folder / "model.safetensors").read_bytes(), (folder / "metrics.jsonl").read_text()


def whole(folder: Path, *settings: str) -> tuple[bytes, str]:
    train_tiny(tiny_run(folder, *settings))
    return outcome(folder)


def test_the_same_command_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = (whole(tmp_path / name) for name in ("a", "b"))
    assert first == second
    assert whole(tmp_path / "c", "seed=1")[0] != first[0]


@pytest.mark.parametrize("manner", MANNERS)
def test_a_run_continues_from_any_step(tmp_path: Path, manner: tuple[str, ...]) -> None:
    settings = (*manner, "checkpoint_steps=4")
    expected = whole(tmp_path / "whole", *settings)
    # Inside the first epoch before and after a checkpoint, at its end, and in the second.
    for steps in (1, 5, STEPS, STEPS + 5):
        folder = tmp_path / f"killed{steps}"
        with pytest.raises(Killed):
            train_tiny(tiny_run(folder, *settings), Assassin(steps))
        again = Assassin(2)
        with pytest.raises(Killed):
            train_tiny(tiny_run(folder, *settings, resume=True), again, resume=True)
        train_tiny(tiny_run(folder, *settings, resume=True), resume=True)
        assert outcome(folder) == expected


def test_resuming_inside_an_epoch_repeats_nothing_that_was_saved(tmp_path: Path) -> None:
    settings = ("checkpoint_steps=4",)
    with pytest.raises(Killed):
        train_tiny(tiny_run(tmp_path / "run", *settings), Assassin(5))
    counter = Assassin(0)
    train_tiny(tiny_run(tmp_path / "run", *settings, resume=True), counter, resume=True)
    assert -counter.left == 2 * STEPS - 4


def test_checkpoints_inside_epochs_do_not_change_the_result(tmp_path: Path) -> None:
    often = whole(tmp_path / "often", "checkpoint_steps=1")
    timed = whole(tmp_path / "timed", "checkpoint_minutes=1e-9")
    seldom = whole(tmp_path / "seldom")
    assert often == timed == seldom


def test_what_does_not_change_results_may_change_on_the_way(tmp_path: Path) -> None:
    expected, folder = whole(tmp_path / "whole"), tmp_path / "run"
    with pytest.raises(Killed):
        train_tiny(tiny_run(folder, "device=cpu"), Assassin(STEPS + 1))
    settings = ("workers=0", "checkpoint_steps=2")
    train_tiny(tiny_run(folder, *settings, resume=True), resume=True)
    assert outcome(folder) == expected
    with pytest.raises(UserError, match="holds other settings than this command"):
        tiny_run(folder, "momentum=0.8", resume=True)


@pytest.mark.parametrize("at", ["metrics", "checkpoint"])
def test_no_epoch_is_lost_or_doubled_by_a_kill_between_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    from qtool.runs.run import Run
    from qtool.training import loop

    expected, folder = whole(tmp_path / "whole"), tmp_path / "run"
    owner, name = {"metrics": (Run, "add_metrics"), "checkpoint": (loop, "save_checkpoint")}[
        at
    ]
    original = getattr(owner, name)
    calls: list[object] = []

    def once(*args: object, **values: object) -> None:
        original(*args, **values)
        calls.append(args)
        if len(calls) == 2:
            raise Killed

    run = tiny_run(folder)
    monkeypatch.setattr(owner, name, once)
    with pytest.raises(Killed):
        train_tiny(run)
    monkeypatch.undo()
    (folder / ".checkpoint-01234567.safetensors").write_bytes(b"half")
    train_tiny(tiny_run(folder, resume=True), resume=True)
    assert outcome(folder) == expected
    assert not list(folder.glob(".*"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.raises(Killed):
        train_tiny(tiny_run(folder), Assassin(STEPS + 3))
    return folder


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (self.path,)


def damaged(data: bytes, how: str, tmp_path: Path) -> bytes:
    if how == "truncated":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    if how == "pickled":
        return pickle.dumps(Bomb(str(tmp_path / "exploded")))
    place = len(data) - 100 if how == "tensor bit" else data.index(b"epochs_done")
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("how", ["truncated", "empty", "pickled", "tensor bit", "header bit"])
def test_a_damaged_checkpoint_is_one_line(half: Path, tmp_path: Path, how: str) -> None:
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    path = folder / "checkpoint.safetensors"
    path.write_bytes(damaged(path.read_bytes(), how, tmp_path))
    before = outcome_files(folder)
    with pytest.raises(
        UserError, match=r"damaged.*delete it to start this phase anew"
    ) as caught:
        train_tiny(tiny_run(folder, resume=True), resume=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert outcome_files(folder) == before and not (tmp_path / "exploded").exists()
    path.unlink()
    train_tiny(tiny_run(folder, resume=True), resume=True)


def outcome_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"weight": torch.randn(2, 3), "count": torch.tensor(7), "none": torch.zeros(0)}
    save_tensors(path, tensors, {"format": 2, "stage": "float"})
    good = path.read_bytes()
    loaded, mark = load_tensors(path)
    assert mark == {"format": 2, "stage": "float"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    for place in range(0, len(good) * 8, 7):  # every byte or its neighbour, at all 8 bits
        byte, bit = divmod(place, 8)
        bad = good[:byte] + bytes([good[byte] ^ (1 << bit)]) + good[byte + 1 :]
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"damaged|was not written by qtool"):
            load_tensors(path)


def test_a_run_s_weights_are_checked_where_they_start_another(tmp_path: Path) -> None:
    path = tmp_path / "float.safetensors"
    save_tensors(path, {"weight": torch.ones(4)}, {"format": 2, "stage": "float"})
    assert torch.equal(load_weights(path)["weight"], torch.ones(4))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
    with pytest.raises(UserError, match="its checksum does not fit its content"):
        load_weights(path)


def test_files_from_before_checksums_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path, {"qtool": '{"format": 2, "stage": "float"}'})
    tensors, _ = load_tensors(path)
    assert torch.equal(tensors["a"], torch.ones(2))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes fail, as those on a full disk do."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_last_checkpoint(half: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    before = outcome_files(folder)
    size = len(before["checkpoint.safetensors"])
    with (
        file_size_limit(size // 2),
        pytest.raises(UserError, match="could not be written") as e,
    ):
        train_tiny(tiny_run(folder, resume=True), resume=True)
    assert "File too large" in str(e.value) and "--resume" in str(e.value)
    after = outcome_files(folder)
    assert set(after) == set(before)
    assert after["checkpoint.safetensors"] == before["checkpoint.safetensors"]
    train_tiny(tiny_run(folder, resume=True), resume=True)
    assert outcome(folder) == whole(tmp_path / "whole")


def test_a_diverging_run_keeps_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path / "run", "float_lr=1")
    checkpoints: list[bytes] = []

    class Poison(Silent):
        """Lets the weights overflow in the second epoch."""

        steps = 0

        def step(self, text: str) -> None:
            Poison.steps += 1
            if Poison.steps == STEPS + 2:
                checkpoints.append(run.path("checkpoint.safetensors").read_bytes())
                parameter = next(p for p in POISONED[0].parameters() if p.ndim > 1)
                parameter.data.mul_(float("inf"))

    import tiny_training

    POISONED: list[torch.nn.Module] = []
    original = tiny_training.tiny_net

    def keep() -> torch.nn.Module:
        POISONED.append(original())
        return POISONED[0]

    monkeypatch.setattr(tiny_training, "tiny_net", keep)
    with pytest.raises(UserError, match=r"tiny epoch 2: .*the last good checkpoint is kept"):
        train_tiny(run, Poison())
    assert run.path("checkpoint.safetensors").read_bytes() == checkpoints[0]


def begin(folder: Path, error: BaseException, resume: bool = False, saved: str = "") -> None:
    """Begin a run, save a file of it, and fail."""
    arguments = (tiny_config(), tiny_data(), resume, False)
    with pytest.raises(type(error)), begun(folder, *arguments) as run:
        assert run.path("recipe.json").exists()
        run.add_metrics(phase="float", loss=1.0)
        if saved:
            run.path(saved).write_bytes(b"tensors")
        raise error


def test_what_failed_before_it_kept_anything_is_taken_back(tmp_path: Path) -> None:
    begin(tmp_path / "a" / "run", UserError("a picture"))
    assert not (tmp_path / "a").exists()
    begin(tmp_path / "a" / "run", ValueError("a network"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("teacher", [".", "float.safetensors"])
def test_a_run_does_not_replace_what_it_is_made_from(teacher: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "float.safetensors").write_bytes(b"tensors")
    config = tiny_config(f"teacher={folder / teacher}")
    with (
        pytest.raises(UserError, match=r"setting teacher: .* is in .*choose another"),
        begun(folder, config, tiny_data(), False, True),
    ):
        pass
    assert [path.name for path in folder.iterdir()] == ["float.safetensors"]
    assert (folder / "float.safetensors").read_bytes() == b"tensors"


@pytest.mark.parametrize("saved", ["checkpoint.safetensors", "float.safetensors"])
def test_what_can_be_continued_stays(saved: str, tmp_path: Path) -> None:
    begin(tmp_path / "run", UserError("a picture"), saved=saved)
    assert (tmp_path / "run" / "recipe.json").exists()


def test_an_interrupted_run_and_one_that_goes_on_stay(tmp_path: Path) -> None:
    begin(tmp_path / "run", KeyboardInterrupt())
    kept = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert "recipe.json" in kept
    begin(tmp_path / "run", UserError("a picture"), resume=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == kept
