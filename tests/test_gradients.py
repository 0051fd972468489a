"""Gradients of several passes to that of one step, against sums done by hand."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from search_nets import batches, meta_net
from test_distributed import free_port
from tiny_training import tiny_config
from torch import Tensor, nn

from qtool.frontends.metamix.bit_meta import bit_meta
from qtool.training.averages import Averages
from qtool.training.gradients import GradientRule, MeanOverPasses, MeanOverUses
from qtool.training.losses import Objective
from qtool.training.update import Pass, Update


class Scalars(nn.Module):
    """Parameters a, b and unused; shared, that is computed once a part; a bank of 3 rows."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a", "b", "unused", "shared"):
            self.register_parameter(name, nn.Parameter(torch.ones(())))
        self.bank = nn.Parameter(torch.ones(3, 2))


def four_passes(model: Scalars, batch: Tensor) -> Iterator[Pass]:
    """Yield passes whose gradients are plain numbers, times the batch's mean."""
    scale = batch.mean()
    made = model.shared * 2
    leaf = made.detach().requires_grad_()
    for loss in (
        2 * model.a + leaf,
        3 * model.a + 2 * model.a + 30 * model.b + leaf,
        7 * model.bank[1, 0] + leaf,
        model.bank[1, 1] + 4 * model.bank[2].sum() + 3 * leaf,
    ):
        yield Pass(loss * scale, torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    torch.autograd.backward([made], [leaf.grad])


def gradients(
    rule: str, batch: Tensor, *settings: str, clamp: float = 0.0
) -> dict[str, Tensor]:
    """Return the gradients of one step; None is left out."""
    model = Scalars()
    made: GradientRule = MeanOverPasses(4, clamp)
    if rule == "uses":
        made = MeanOverUses(model, clamp, [model.bank])
    update = Update(tiny_config("momentum=0", *settings), model, 0.0, made)
    for _ in range(2):  # nothing is left from one step to the next
        update(lambda part: four_passes(model, part), batch, Averages())
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


# Of a batch whose mean is 1: a in two passes, b in one, shared in all four.
BY_HAND = {
    "passes": {"a": 7 / 4, "b": 30 / 4, "shared": 12 / 4, "bank": [0, 0, 7 / 4, 1 / 4, 1, 1]},
    "uses": {"a": 7 / 2, "b": 30, "shared": 12 / 4, "bank": [0, 0, 7 / 2, 1 / 2, 4, 4]},
}


def check(found: dict[str, Tensor], rule: str, clamp: float = 1e9) -> None:
    assert found.keys() == BY_HAND[rule].keys()
    for name, value in BY_HAND[rule].items():
        expected = (
            torch.tensor(value, dtype=torch.float32)
            .clamp(-clamp, clamp)
            .reshape(found[name].shape)
        )
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", BY_HAND)
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_mean_is_over_passes_or_over_those_that_used_a_parameter(
    rule: str, parts: int
) -> None:
    check(gradients(rule, torch.tensor([0.5, 1.5, 1, 1]), f"accumulate={parts}"), rule)


@pytest.mark.parametrize("rule", BY_HAND)
def test_elements_of_the_mean_are_clamped(rule: str) -> None:
    check(gradients(rule, torch.ones(4), clamp=3), rule, clamp=3)


def test_clamping_comes_before_clipping() -> None:
    found = gradients("uses", torch.ones(4), "clip_norm=1", clamp=3)
    norm = sum(float(grad.square().sum()) for grad in found.values()) ** 0.5
    assert norm == pytest.approx(1, rel=1e-4) and float(found["b"]) == float(found["shared"])


def test_a_row_that_no_pass_used_has_no_gradient_of_its_own() -> None:
    assert not gradients("uses", torch.ones(4))["bank"][0].any()


def test_hooks_end_with_the_step() -> None:
    model = Scalars()
    rule = MeanOverUses(model)
    update = Update(tiny_config(), model, 0.0, rule)
    update(lambda part: four_passes(model, part), torch.ones(4), Averages())
    assert all(not p._backward_hooks for p in model.parameters())


def test_where_all_passes_use_a_parameter_both_rules_are_one() -> None:
    found = []
    for uses in (False, True):
        model, _ = meta_net()
        update, losses = bit_meta(
            tiny_config("activation_bits=8,4,2"), 0.0, model, Objective(tiny_config())
        )
        if uses:
            update.rule = MeanOverUses(model)
        update(losses, batches()[0], Averages())
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    passes, uses = found
    assert passes.keys() == uses.keys() and "0.layer.weight" in passes
    for name in passes:
        # Sums of the same terms, divided before and after; a bias in front of BatchNorm has
        # none, but float32's noise.
        torch.testing.assert_close(uses[name], passes[name], rtol=1e-3, atol=1e-6)


def test_todays_rule_divides_the_loss_as_before() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3), nn.Parameter(torch.randn(3))
    rule = MeanOverPasses(3)
    rule.start(2)
    rule.backward((x @ weight).square().mean())
    rule.finish([weight])
    (expected,) = torch.autograd.grad((x @ weight).square().mean() / 6, [weight])
    assert weight.grad is not None and torch.equal(weight.grad, expected)


JOB = """
import sys, torch
sys.path.insert(0, {here!r})
from qtool.parallel.together import joined
from test_gradients import check, gradients
with joined() as job:
    share = torch.tensor([[0.5, 0.2], [1.5, 1.8]])[:, job.rank]  # means 1 and 1
    for rule in ("passes", "uses"):
        check(gradients(rule, share), rule)
        check(gradients(rule, share, "accumulate=2"), rule)
    print("checked", job.size)
"""


@pytest.mark.nightly
def test_a_job_of_two_processes_has_the_same_gradients() -> None:
    script = JOB.format(here=str(Path(__file__).parent))
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    size = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **address, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for out, errors in [process.communicate() for process in processes]:
        assert out.strip().endswith("checked 2"), errors
