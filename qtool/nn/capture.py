"""tmp."""

from collections.abc import Sequence

from torch import fx, nn

from qtool.errors import UnsupportedError


def capture(model: nn.Module, input_shape: Sequence[int] | None) -> fx.GraphModule:
    """Tmp."""
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # torch.fx raises many types, all about the user's forward()
        raise UnsupportedError(
            f"model {type(model).__name__} cannot be traced: {error}"
        ) from error
