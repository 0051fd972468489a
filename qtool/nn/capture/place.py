"""Names and places in a captured network: what is put in takes nothing of the user's away."""

from torch import fx, nn

from qtool.core.errors import UnsupportedError
from qtool.models.owned import without_children

# Key of a node's meta: the path of the user's module that computes it.
ORIGIN = "qtool_origin"
_TORCH_FX = {*dir(fx.GraphModule(nn.Module(), fx.Graph()))} - {*dir(nn.Module())}
_UNWRITABLE = ('"', "\\", "\n", "\r")


def require_free_names(model: nn.Module) -> None:
    """Refuse parts whose names torch.fx keeps for itself, or cannot write."""
    for name, _ in model.named_modules():
        if any(sign in name for sign in _UNWRITABLE):
            raise UnsupportedError(
                f"layer {name!r}: torch.fx writes names into code, and cannot write this one; "
                "give it another name"
            )
    parts = (model._modules, model._parameters, model._buffers)
    for name in (name for part in parts for name in part):
        if name in _TORCH_FX:
            raise UnsupportedError(
                f"layer {name}: torch.fx calls something of its own so; give it another name"
            )


def fresh(root: nn.Module, name: str) -> str:
    """Return `name`, or it with as many ``_`` as nothing in `root` is called yet."""
    while hasattr(root, name):
        name += "_"
    return name


def part_at(gm: fx.GraphModule, name: str) -> nn.Module:
    """Return the module at `name`, without what the graph calls inside it by itself."""
    module = gm.get_submodule(name)
    return without_children(module) if _called_inside(gm, name) else module


def _called_inside(gm: fx.GraphModule, name: str) -> bool:
    return any(
        node.op == "call_module" and str(node.target).startswith(f"{name}.")
        for node in gm.graph.nodes
    )


def put(gm: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Put `module` at `name`; what the graph calls or reads inside the old one comes along.

    It keeps its name, ``name.act``, unless `module` has something of that name itself.
    """
    old, prefix = gm.get_submodule(name), f"{name}."
    gm.set_submodule(name, module)
    moved: dict[str, str] = {}
    for node in gm.graph.nodes:
        if node.op not in ("call_module", "get_attr") or not node.target.startswith(prefix):
            continue
        part, dot, rest = node.target.removeprefix(prefix).partition(".")
        if part not in moved:
            moved[part] = fresh(module, part)
            setattr(module, moved[part], getattr(old, part))
        node.target = f"{prefix}{moved[part]}{dot}{rest}"


def take_out(gm: fx.GraphModule, name: str) -> None:
    """Remove the module at `name`, which the graph no longer calls, but not what is inside."""
    inside = any(str(node.target).startswith(f"{name}.") for node in gm.graph.nodes)
    if inside:
        put(gm, name, nn.Module())
    else:
        gm.delete_submodule(name)


def place_of(node: fx.Node) -> str:
    """Return where `node` is in the user's network: a path, or the module that computes it."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    paths = ["", *(path for path, _ in stack.values()), node.meta.get(ORIGIN, "")]
    path = next((path for path in reversed(paths) if path), "")
    return f"{node.name} in {path}" if path else str(node.name)
