"""One optimizer step as a recipe wants it: parts, clipping, averaged weights, a teacher."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import run_qtool
from safetensors.torch import save_file
from tiny_training import CLASSES, SHAPE, plain_net, tiny_config
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.errors import UserError
from qtool.data.batches import Batch
from qtool.data.images import Images
from qtool.models.normalised import Normalised
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.training.averages import Averages
from qtool.training.ema import Ema
from qtool.training.evaluation import accuracy, predict, recalibrate_norms
from qtool.training.ingredients import check_training, make_objective
from qtool.training.losses import Objective, distillation_loss
from qtool.training.update import Pass, Update


def images(count: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(count, *SHAPE), torch.randint(CLASSES, (count,))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), CLASSES))


def updated(*settings: str, steps: int = 1) -> tuple[nn.Module, Update]:
    """Return a linear network after so many steps on the same batch."""
    model, config = linear(), tiny_config("label_smoothing=0", *settings)
    update = Update(config, model, 0.1)

    def losses(batch: Batch) -> Iterator[Pass]:
        x, labels = batch
        logits = model(x)
        yield Pass(functional.cross_entropy(logits, labels), logits, labels)

    for _ in range(steps):
        update(losses, images(), Averages())
    return model, update


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_is_the_same_batch(parts: int) -> None:
    whole, split = updated(steps=3)[0], updated(f"accumulate={parts}", steps=3)[0]
    torch.testing.assert_close(split.state_dict(), whole.state_dict())


def test_gradients_are_clipped_together() -> None:
    model, _ = updated("clip_norm=1e-3")
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    assert len(squares) == 2 and float(sum(squares)) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def test_autocast_computes_in_bfloat16() -> None:
    plain, cast = updated()[0].state_dict(), updated("autocast=true")[0].state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in cast.values())
    assert not torch.equal(cast["1.weight"], plain["1.weight"])
    torch.testing.assert_close(cast, plain, atol=1e-3, rtol=0)


def test_the_average_of_weights_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema, expected = Ema(model, 0.2), 1.0
    for step, value in enumerate((2.0, 5.0, 3.0), 1):
        model.weight.data.fill_(value)
        ema.update()
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    ema.copy_to_model()
    assert model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_distillation_is_the_published_loss() -> None:
    logits, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3)
    p, q = (functional.softmax(t.double() / 4, 1) for t in (teacher, logits))
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation_loss(logits, teacher, 4)) == pytest.approx(float(expected), 1e-5)


def test_a_teacher_sees_a_batch_once() -> None:
    calls: list[Tensor] = []

    def load(shape: tuple[int, ...], classes: int) -> nn.Module:
        assert (shape, classes) == (SHAPE, CLASSES)
        teacher = linear()
        teacher.register_forward_hook(lambda _m, args, _out: calls.append(args[0]))
        return teacher

    (x, labels), config = images(), tiny_config("distill_weight=1", "temperature=1")
    loss = Objective(config, load).on(x, labels)
    same, other = loss(linear()(x)), loss(torch.zeros(8, CLASSES, requires_grad=True))
    assert float(same) == pytest.approx(0, abs=1e-6) and float(other) > 0.01
    assert other.requires_grad and len(calls) == 1


def teacher_file(folder: Path) -> Path:
    path = folder / "teacher.safetensors"
    save_file(plain_net().state_dict(), path)
    return path


def test_a_teacher_from_a_file_leaves_random_numbers_alone(tmp_path: Path) -> None:
    path, (x, labels) = teacher_file(tmp_path), images()
    config = tiny_config(
        f"teacher={path}", "teacher_model=tiny_training:plain_net", "distill_weight=1"
    )
    loss = make_objective(config).on(x, labels)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    loss(torch.zeros(len(x), CLASSES))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [("nothing.pt", "no such file"), ("teacher.safetensors", "does not fit MobileNetV2")],
)
def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher_file(tmp_path)
    out = tmp_path / "run"
    result = run_qtool("train", "metamix_fashion", "--set", f"teacher={teacher}", "--out", out)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1
    assert not out.exists()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_training import tiny_data

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device: got cuda, but torch finds no GPU"):
        check_training(tiny_config("device=cuda"), tiny_data())


def test_averages_do_not_depend_on_when_somebody_looks() -> None:
    seldom, often = Averages(), Averages()
    for index in range(7):
        torch.manual_seed(index)
        batch = (torch.rand(()) / 3, torch.rand(5, 3), torch.randint(3, (5,)))
        for averages in (seldom, often):
            averages.add(*batch)
        often.look()
    seldom.look()
    assert torch.equal(seldom.totals, often.totals) and float(seldom.totals[2]) == 35


def test_constants_of_a_normalised_network_stay_constants() -> None:
    network = Normalised(plain_net(), (0.3,), (0.2,))
    prepared = prepare(network, QuantSpec(activation_bits=(8,), weight_bits=(8,)))
    (name,) = [n for n, b in prepared.named_buffers() if b.shape == (1,) and "mean" in n]
    x, _ = images()

    class Two:
        seed = 0

        def __len__(self) -> int:
            return 2

        def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
            yield from [images(), images()]

    recalibrate_norms(prepared, Two(), 2)
    assert float(prepared.get_buffer(name)) == pytest.approx(0.3)
    prepared.train()
    expected = copy.deepcopy(network).train()(x)
    torch.testing.assert_close(prepared(x), expected)


def test_accuracy_counts_what_predict_says() -> None:
    pixels = (images(20)[0].numpy() * 255).astype("uint8")
    data, model = Images(pixels, images(20)[1].numpy()), plain_net()
    right = predict(model, data, batch=7).argmax(1).numpy() == data.labels
    assert accuracy(model, data, batch=6) == pytest.approx(100 * right.mean())
