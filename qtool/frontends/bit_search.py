"""MetaMix's bit-search: architecture parameters, the straight-through mixture, its loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.budget import Choice, check_reachable, fit
from qtool.config import MetaMixConfig
from qtool.data.clips import clip_logits
from qtool.nn.control import layer_bits, layer_macs, quant_layers, select
from qtool.qspec import LayerBits, Selection
from qtool.training.losses import task_loss

GIGA = 1e9


class BitSearch:
    """alpha (open layers, candidates) over a prepared model whose weights stay as they are.

    Args:
        config: candidates, lambda, initialisation.
        model: prepared model at its meta-state.
        shape: (C, H, W) of an image.
        budget: target BOPs per image.

    Raises:
        UserError: the budget is outside what the candidates reach.
    """

    def __init__(
        self, config: MetaMixConfig, model: nn.Module, shape: tuple[int, ...], budget: float
    ) -> None:
        self.config, self.model, self.budget = config, model, budget
        macs = dict(layer_macs(model, shape))
        layers = quant_layers(model)
        self.open = [layer for layer in layers if len(layer.input_quant.bits) > 1]
        # BOPs per activation bit of each layer.
        slope = {layer.name: macs[layer.name] * layer.weight_quant.bits[0] for layer in layers}
        self.slopes = [slope[layer.name] for layer in self.open]
        self.fixed = sum(
            slope[layer.name] * layer_bits(layer).activation
            for layer in layers
            if len(layer.input_quant.bits) == 1
        )
        inner = sum(self.slopes)
        candidates = config.activation_bits
        check_reachable(
            budget, self.fixed + inner * min(candidates), self.fixed + inner * max(candidates)
        )
        generator = torch.Generator().manual_seed(config.seed)
        start = torch.randn(len(self.open), len(candidates), generator=generator)
        self.alpha = nn.Parameter(start * config.alpha_init)

    def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return (loss of Eq. 3, logits, BOPs of the present argmax)."""
        soft = functional.softmax(self.alpha, 1)
        hard = functional.one_hot(self.alpha.argmax(1), soft.shape[1]).to(soft.dtype)
        mix = hard + soft - soft.detach()
        select(self.model, Selection(), weights=False)
        for row, layer in enumerate(self.open):
            layer.input_quant.mix = mix[row]
        logits = clip_logits(self.model(x), len(labels))
        bits = mix @ soft.new_tensor(self.config.activation_bits)
        gbops = (soft.new_tensor(self.slopes) / GIGA * bits).sum() + self.fixed / GIGA
        penalty = self.config.search_lambda * (gbops - self.budget / GIGA).abs()
        return task_loss(self.config, logits, labels) + penalty, logits, gbops.item() * GIGA

    def result(self) -> tuple[dict[str, LayerBits], list[str]]:
        """Return the bits of every open layer within the budget, and the layers repaired."""
        scores = functional.log_softmax(self.alpha.detach(), 1).tolist()
        rows = [
            [
                Choice(bits, slope * bits, score)
                for bits, score in zip(self.config.activation_bits, row, strict=True)
            ]
            for slope, row in zip(self.slopes, scores, strict=True)
        ]
        chosen = fit(rows, self.budget - self.fixed)
        favourite = [max(row, key=lambda choice: choice.score) for row in rows]
        pairs = zip(self.open, chosen, favourite, strict=True)
        repaired = [layer.name for layer, got, wanted in pairs if got.bits != wanted.bits]
        bits = {
            layer.name: LayerBits(layer.weight_quant.bits[0], choice.bits)
            for layer, choice in zip(self.open, chosen, strict=True)
        }
        return bits, repaired
