"""torch.fx's symbolic trace, as `qtool.nn.capture.capture` wants it."""

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from qtool.nn.capture.aliases import PURE
from qtool.nn.capture.operators import IDENTITY_IN_EVALUATION, is_plain


class Tracer(fx.Tracer):
    """Keeps every module whose training differs, or that is a layer, in one piece."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True for modules that become one call."""
        if type(m).__name__ in IDENTITY_IN_EVALUATION or is_plain(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what forward() computes with instead of a tensor."""
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """Knows ``y += z`` from ``y = y + z``, which torch.fx's own does not."""


def _in_place(function: Any, pure: Any) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def called(self: fx.Proxy, other: Any) -> fx.Proxy:
        # Named as torch.fx names it: exported files have the name.
        return self.tracer.create_proxy(
            "call_function", function, (self, other), {}, pure.__name__
        )

    return called


for _function, _pure in PURE.items():
    setattr(_Proxy, f"__{_function.__name__}__", _in_place(_function, _pure))
