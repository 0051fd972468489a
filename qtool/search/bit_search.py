"""The differentiable search: architecture parameters, their mixture, and its loss.

Every open layer has one parameter alpha a choice. A choice (b_w, b_a) mixes as

    a_hat = sum over b_a of P(b_a) Q_{b_a}(a),  w_hat = sum over b_w of P(b_w) Q_{b_w}(w)

with P the marginals of the mixture over pairs: one convolution a layer, not one a pair.

The mixture is softmax(alpha) in MetaMix (Eq. 2), so that the error of every candidate is in
the forward pass in proportion to its probability; a Gumbel softmax in DNAS. What it costs
(Eq. 4) is that of the one-hot argmax, with softmax's gradient (Eq. 5).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.selection import Selection
from qtool.data.clips import clip_logits
from qtool.nn.control import quant_layers, select
from qtool.nn.modules.quantizer import Quantizer
from qtool.search.limits import KINDS, Limit, check_reachable
from qtool.search.space import Space
from qtool.settings.search import SearchSettings
from qtool.training.losses import LogitsLoss
from qtool.training.update import precision


def softmax(alpha: Tensor) -> Tensor:
    """Return the mixture of Eq. 2."""
    return functional.softmax(alpha, 1)


def straight_through(alpha: Tensor) -> Tensor:
    """Return the one-hot argmax of every row, with softmax's gradient (paper, Eq. 5)."""
    soft = functional.softmax(alpha, 1)
    hard = functional.one_hot(alpha.argmax(1), soft.shape[1]).to(soft.dtype)
    return hard + soft - soft.detach()


class BitSearch:
    """alpha (open layers, choices) over a prepared model.

    Args:
        config: lambda, initialisation.
        model: prepared model.
        space: its layers and candidates; every open layer has the same number of choices.
        limits: the budget; the first bound is aimed at, the others are only upper bounds.
        is_fixed: only `alpha` is trained: a cheaper gradient.
        quantize_weights: also where they have one candidate; the paper searches on
            floating-point weights then.

    Raises:
        UserError: the budget is outside what the candidates reach.
    """

    def __init__(
        self,
        config: SearchSettings,
        model: nn.Module,
        space: Space,
        limits: Sequence[Limit],
        is_fixed: bool = False,
        quantize_weights: bool = False,
    ) -> None:
        check_reachable(limits)
        self.config, self.model, self.space, self.limits = config, model, space, limits
        self.is_fixed = is_fixed
        layers = {layer.name: layer for layer in quant_layers(model)}
        self.layers = [layers[layer.name] for layer in space.open]
        pairs = any(len(layer.weight_quant.bits) > 1 for layer in self.layers)
        self.quantize_weights = quantize_weights or pairs
        generator = torch.Generator().manual_seed(config.seed)
        size = (len(space.open), len(space.open[0].choices))
        self.alpha = nn.Parameter(torch.randn(size, generator=generator) * config.alpha_init)

    def loss(
        self, x: Tensor, task_loss: LogitsLoss, count: int, mixture: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (task loss, logits, penalty), the first and the last to be added (Eq. 3).

        Args:
            x: images.
            task_loss: of logits (`count`, classes): the recipe's on `x`, teacher included.
            count: number of labels.
            mixture: (open layers, choices), made from `alpha`; each row's sum is 1.
        """
        select(self.model, Selection(), weights=self.quantize_weights)
        self._mix(mixture)
        with precision(self.config, x.device):
            logits = clip_logits(self.model(x), count)
            loss = task_loss(logits)
        penalty = self.config.search_lambda * self._excess(straight_through(self.alpha))
        return loss, logits, penalty

    def shares(self) -> list[float]:
        """Return what the present argmax uses of every bound."""
        picks = self.alpha.argmax(1).tolist()
        return [limit.used(picks) / limit.bound for limit in self.limits]

    def _mix(self, mixture: Tensor) -> None:
        """Let every open layer's quantizers mix their candidates."""
        for row, layer, open_layer in zip(mixture, self.layers, self.space.open, strict=True):
            pairs = open_layer.choices
            self._mix_marginal(layer.input_quant, row, [pair.activation for pair in pairs])
            if self.quantize_weights:
                self._mix_marginal(layer.weight_quant, row, [pair.weight for pair in pairs])

    def _mix_marginal(self, quantizer: Quantizer, row: Tensor, bits: Sequence[int]) -> None:
        """Let `quantizer` mix its candidates with their marginals of `row` over pairs."""
        if len(quantizer.bits) == 1:
            return
        belongs = row.new_tensor([[float(b == own) for own in quantizer.bits] for b in bits])
        quantizer.mix, quantizer.is_fixed = row @ belongs, self.is_fixed

    def _excess(self, mixture: Tensor) -> Tensor:
        """Return |cost - bound| of the first bound (Eq. 4), what exceeds the others."""
        terms = []
        for index, limit in enumerate(self.limits):
            costs, unit = mixture.new_tensor(limit.costs), KINDS[limit.kind].unit
            distance = (mixture * (costs / unit)).sum() + (limit.fixed - limit.bound) / unit
            terms.append(distance.relu() if index else distance.abs())
        return torch.stack(terms).sum()

    def scores(self) -> list[list[float]]:
        """Return log-probabilities of every choice of every open layer."""
        found: list[list[float]] = functional.log_softmax(self.alpha.detach(), 1).tolist()
        return found
