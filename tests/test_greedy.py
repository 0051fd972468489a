"""Measured loss increases, and the steps down to a limit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_nets import batches, fingerprint, meta_net, same
from torch.nn import functional

from qtool.core.selection import LayerBits, Selection
from qtool.nn.control import initialise_weight_steps, quantizers, select
from qtool.search.greedy import greedy_choices, loss_increases

Table = list[list[float]]


def total(table: Table, choices: list[int]) -> float:
    return sum(row[choice] for row, choice in zip(table, choices, strict=True))


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, Table]:
    widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    penalty, cost = st.floats(-1, 10), st.integers(1, 30)
    return tuple(
        [draw(st.lists(values, min_size=n, max_size=n)) for n in widths]
        for values in (penalty, cost)
    )  # type: ignore[return-value]


@settings(max_examples=100, deadline=None)
@given(tables(), st.floats(0, 1.2))
def test_the_limit_is_kept_and_nothing_useful_is_left(
    problem: tuple[Table, Table], share: float
) -> None:
    penalties, costs = problem
    limit = share * sum(max(row) for row in costs)
    chosen = greedy_choices(penalties, costs, limit)
    used, cheapest = total(costs, chosen), sum(min(row) for row in costs)
    if cheapest > limit:
        assert used == cheapest
        return
    assert used <= limit
    for layer, now in enumerate(chosen):
        for choice, cost in enumerate(costs[layer]):
            more = cost - costs[layer][now]
            better = penalties[layer][choice] <= penalties[layer][now]
            assert not (better and 0 < more <= limit - used)


def test_the_layer_that_loses_least_per_cost_goes_down_first() -> None:
    penalties = [[0.0, 1.0, 9.0], [0.0, 3.0, 4.0]]
    costs = [[8, 4, 2], [80, 40, 20]]
    assert greedy_choices(penalties, costs, 88) == [0, 0]
    # 4 / 60 of the second layer is less than its 3 / 40 and the first one's 1 / 4.
    assert greedy_choices(penalties, costs, 30) == [0, 2]
    # Afterwards there is room for the step that lies between.
    assert greedy_choices(penalties, costs, 48) == [0, 1]


def test_an_increase_is_the_loss_at_those_bits_less_that_at_the_widest() -> None:
    model, space = meta_net()
    before, data = fingerprint(model), batches()
    model.train()
    table = loss_increases(model, space, data)
    assert model.training and same(before, model)
    assert [q.selected for q in quantizers(model)] == [None] * len(quantizers(model))

    @torch.no_grad()
    def loss(bits: dict[str, LayerBits]) -> float:
        model.eval()
        select(model, Selection(bits), weights=False)
        parts = [functional.cross_entropy(model(x), labels) for x, labels in data]
        return float(sum(parts) / len(parts))

    names = [layer.name for layer in space.open]
    widest = dict.fromkeys(names, LayerBits(4, 8))
    for name, row in zip(names, table, strict=True):
        for bits, increase in zip((8, 4, 2), row, strict=True):
            wanted = loss({**widest, name: LayerBits(4, bits)}) - loss(widest)
            assert abs(increase - wanted) < 1e-5
        assert row[0] == 0.0 and row[2] != 0.0


def test_weights_are_quantized_where_their_bits_are_chosen() -> None:
    model, space = meta_net((8, 4))
    before = fingerprint(model)
    initialise_weight_steps(model)
    fitted = loss_increases(model, space, batches())
    model.load_state_dict(before)
    for quantizer in quantizers(model):
        if quantizer.role == "weight" and quantizer.learned:
            quantizer.step.data.fill_(10.0)
    assert loss_increases(model, space, batches()) == fitted
    # Choices are (8, 8), (8, 4), (8, 2), (4, 8), ...: the first is the widest.
    assert all(row[0] == 0.0 and row[3] != 0.0 for row in fitted)
