"""One prediction a clip: the mean of its frames' logits (Wang et al. 2016, equation 1).

The frames are added one after the other, so that torch and numpy give the same floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Logits = TypeVar("Logits", "Tensor", "NDArray[Any]")


def clip_logits(logits: Logits, labels_count: int) -> Logits:
    """Return logits (labels_count, ...) of clips from logits (labels_count * frames, ...).

    The frames of a clip follow each other, as `Source.load` returns them; images, one frame a
    label, come back as they are. Differentiable in torch.

    Raises:
        ValueError: the frames do not divide among the labels.
    """
    if len(logits) == labels_count:
        return logits
    frames, rest = divmod(len(logits), max(labels_count, 1))
    if rest or not labels_count:
        raise ValueError(f"{len(logits)} logits do not divide among {labels_count} labels")
    clips = logits.reshape(labels_count, frames, *logits.shape[1:])
    total = clips[:, 0]
    for frame in range(1, frames):
        total = total + clips[:, frame]
    return total / frames
