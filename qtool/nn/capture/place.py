"""Names and places in a captured network: what is put in takes nothing of the user's away."""

from torch import fx, nn


def fresh(root: nn.Module, name: str) -> str:
    """Return `name`, or it with as many ``_`` as nothing in `root` is called yet."""
    while hasattr(root, name):
        name += "_"
    return name


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
