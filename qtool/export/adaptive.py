"""The adaptive graph of a run, traced once: other bits are exported without torch.

``adaptive.onnx`` in the run directory holds the graph with the ``qtool::FakeQuant`` nodes of
every candidate, and as metadata the hash of all that it was traced from: recipe, weights and
corrections, and qtool's version. Another hash, or a file that cannot be read, and the model is
traced again.
"""

import hashlib

import onnx
import onnx_ir as ir

import qtool
from qtool.core.files import write_bytes
from qtool.core.selection import Selection
from qtool.runs.run import Run
from qtool.runs.stage import Stage

_KEY = "qtool.traced_from"
_FORMAT = 1


def traced(run: Run, selection: Selection) -> ir.Model:
    """Return the adaptive graph of `run` as it is deployed at `selection`; the caller's own.

    Raises:
        UserError: the run has no weights yet, or they are damaged.
    """
    key = _key(run, selection)
    known = _read(run, key)
    if known is not None:
        return known
    from qtool.export.trace import trace
    from qtool.networks import load_deployed

    model = trace(load_deployed(run, selection), run.input_shape)
    model.metadata_props[_KEY] = key
    data = ir.to_proto(model).SerializeToString()
    try:
        write_bytes(run.path("adaptive.onnx"), data)
    except OSError:
        pass  # a run that may only be read is traced every time
    # What was written, not what was traced: the first export and the next are the same.
    return _parse(data)


def _key(run: Run, selection: Selection) -> str:
    """Return the hash of what the graph depends on."""
    state = hashlib.sha256(f"{_FORMAT} {qtool.__version__}".encode())
    for name in ("recipe.json", Stage.MODEL.file, Stage.CORRECTIONS.file):
        path = run.path(name)
        content = path.read_bytes() if path.exists() else b""
        state.update(hashlib.sha256(content).digest())
    if run.has_weights(Stage.CORRECTIONS):  # which of them apply depends on the bits
        state.update(repr((list(selection.layers.items()), selection.default)).encode())
    return state.hexdigest()


def _read(run: Run, key: str) -> ir.Model | None:
    """Return the graph in the run directory if it was traced from `key`."""
    try:
        model = _parse(run.path("adaptive.onnx").read_bytes())
    except Exception:  # absent, or damaged in whatever way: it is made again
        return None
    return model if model.metadata_props.get(_KEY) == key else None


def _parse(data: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_model_from_string(data))
