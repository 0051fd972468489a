"""BatchNorms and biases with a row for every candidate, of which one is picked.

`SwitchNorm` is a BatchNorm for each key: for each precision (Switchable BatchNorm, CoQuant),
for each pair of bit-widths (MEBQAT), for each preset (PTQ's corrections). `SwitchBias` is a
bias for each key, of a layer that no BatchNorm follows. `qtool.nn.norm_rows` puts them into a
network; `qtool.nn.control.select` picks, by the rule of `qtool.core.choose`. In training only
the picked row sees batches and gradients.

A trace for export sees the picked row; `qtool.export.trace_norms` then puts all of them into
the graph.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from qtool.core.bank import Bank
from qtool.core.choose import Serves

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Switch(nn.Module):
    """What has a row for each key.

    Args:
        name: its own, in the user's model.
        layer: whose bits choose the row; "" for what belongs to none.
        keys: of the rows, the default one first (`qtool.core.choose.parse_key`).
        serves: what the rows do.
    """

    def __init__(
        self, name: str, layer: str, keys: tuple[str, ...], serves: Serves = Serves.ANY
    ) -> None:
        super().__init__()
        self.name, self.layer, self.bank = name, layer, Bank(keys)
        self.serves = serves
        self.key = keys[0]

    @property
    def is_exact(self) -> bool:
        """True where a row serves only the whole network at its key's bits."""
        return self.serves is Serves.WHOLE

    def pick(self, row: int) -> None:
        """Let row `row` compute from now on."""
        self.key = self.bank.keys[row]


class SwitchNorm(Switch):
    """The BatchNorm of the picked key.

    Args:
        name: its own, in the user's model.
        layer: whose bits choose the row.
        norms: a BatchNorm for each key, the default one first; they differ in parameters and
            statistics alone.
        serves: what the rows do.
    """

    def __init__(
        self,
        name: str,
        layer: str,
        norms: Mapping[str, BatchNorm],
        serves: Serves = Serves.ANY,
    ) -> None:
        super().__init__(name, layer, tuple(norms), serves)
        kinds = {(type(n), n.num_features, n.eps, n.affine) for n in norms.values()}
        if len(kinds) > 1:
            raise ValueError(f"norm {name}: its rows differ in kind, size, eps or affine")
        self.rows = nn.ModuleDict(norms)

    @property
    def norms(self) -> list[BatchNorm]:
        """The BatchNorms, in the order of the keys."""
        return [cast(BatchNorm, self.rows[key]) for key in self.bank.keys]

    @property
    def picked(self) -> BatchNorm:
        """The BatchNorm that computes."""
        return cast(BatchNorm, self.rows[self.key])

    def parts(self) -> dict[str, list[Tensor]]:
        """Return what the graph has rows (C,) of, in the order of its inputs."""
        ones = torch.ones(self.picked.num_features)
        return {
            "bias": [n.bias if n.affine else ones - 1 for n in self.norms],
            "weight": [n.weight if n.affine else ones for n in self.norms],
            "running_mean": [n.get_buffer("running_mean") for n in self.norms],
            "running_var": [n.get_buffer("running_var") for n in self.norms],
        }

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        y: Tensor = self.picked(x)
        return y


class SwitchBias(Switch):
    """The bias of the picked key.

    Args:
        name: the layer's, whose bits choose the row.
        biases: (C,) for each key, the default one first.
    """

    def __init__(self, name: str, biases: Mapping[str, Tensor]) -> None:
        super().__init__(name, name, tuple(biases))
        self.rows = nn.ParameterDict(
            {key: nn.Parameter(bias.detach().clone()) for key, bias in biases.items()}
        )

    @property
    def picked(self) -> nn.Parameter:
        """The bias (C,) that is added."""
        return cast(nn.Parameter, self.rows[self.key])

    def parts(self) -> dict[str, list[Tensor]]:
        """Return what the graph has rows (C,) of."""
        return {"bias": [self.rows[key] for key in self.bank.keys]}
