"""The adaptive graph of a run, traced once: any bits are exported from it without torch.

``adaptive.onnx`` in the run directory holds the graph with every candidate of its quantizers,
norms and biases, and as metadata the hash of all that it was traced from: recipe, weights and
corrections, and qtool's version. Another hash, or a file that cannot be read, and the model is
traced again.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

import qtool
from passes.emit.facts import CLASSES_KEY, DATASET_KEY, FRAMES_KEY, VERSION_KEY, ZERO_SHOT_KEY
from qtool.core.errors import UserError
from qtool.core.files import write_bytes
from qtool.core.selection import LayerBits, Selection
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.runs.zero_shot import zero_shot_pairs

_KEY = "qtool.traced_from"
_FORMAT = 2
_DEPLOYED = (Stage.MODEL, Stage.CORRECTIONS, Stage.NORMS)


@dataclass(frozen=True)
class RunSource:
    """A run as what it is exported from: a `qtool.export.source.AdaptiveSource`."""

    run: Run

    @classmethod
    def open(cls, folder: Path) -> "RunSource":
        """Return the run in `folder`; raises what `Run.open` does."""
        return cls(Run.open(folder))

    def graph(self) -> ir.Model:
        """Return the run's adaptive graph; the caller's own.

        Raises:
            UserError: the run has no weights yet, or they are damaged; or no classes.
        """
        _require_classes(self.run)
        key = origin_key(self.run)
        known = _read(self.run, key)
        return _trace(self.run, key) if known is None else known

    def selection(self) -> Selection:
        """Return the searched bits; the widest candidates before any search."""
        return self.run.selection()

    def metadata(self, selection: Selection) -> dict[str, str]:
        """Return data set and version, how many frames a clip has, and names of classes.

        Of a `selection` of bits that were never trained, also what these were given.

        Raises:
            UserError: the run has other bits, and BatchNorm's statistics of these alone.
        """
        _require_own_bits(self.run, selection)
        config = self.run.config
        metadata = {DATASET_KEY: config.dataset, VERSION_KEY: qtool.__version__}
        if config.frames:
            metadata[FRAMES_KEY] = str(config.frames)
        if names := self.run.class_names():
            metadata[CLASSES_KEY] = json.dumps(names)
        if told := zero_shot_told(self.run, selection):
            metadata[ZERO_SHOT_KEY] = told
        return metadata


@dataclass(frozen=True)
class OneRow(RunSource):
    """The run with its own norms at every selection, whatever these were taken at.

    Lowered, it shows what an export refuses, before statistics are taken for it.

    Args:
        run: trained.
        pair: bits that it shall have, trained or not.
    """

    pair: LayerBits

    def graph(self) -> ir.Model:
        """Return the graph, traced anew; raises as `RunSource.graph`."""
        from qtool.export.trace import trace
        from qtool.networks import load_prepared

        _require_classes(self.run)
        return trace(load_prepared(self.run, [self.pair]), self.run.input_shape)


def _require_classes(run: Run) -> None:
    """Refuse a run whose network is to be given its classes."""
    if run.config.classless:
        raise UserError(
            f"run {run.folder} is {run.config.classless}: give it classes with "
            f"qtool adapt {run.folder} --support DIR --bits {run.config.example_bits} -o "
            "ADAPTED, and export that run"
        )


def _trace(run: Run, key: str) -> ir.Model:
    from qtool.export.trace import trace
    from qtool.networks import load_adaptive

    model = trace(load_adaptive(run), run.input_shape)
    model.metadata_props[_KEY] = key
    data = ir.to_proto(model).SerializeToString()
    try:
        write_bytes(run.path("adaptive.onnx"), data)
    except OSError:
        pass  # a run that may only be read is traced every time
    # What was written, not what was traced: the first export and the next are the same.
    return _parse(data)


def origin_key(run: Run) -> str:
    """Return the hash of what the graph depends on: recipe, weights, qtool's version."""
    trained = trained_key(run)
    if not run.has_weights(Stage.ZERO_SHOT):
        return trained
    added = hashlib.sha256(run.path(Stage.ZERO_SHOT.file).read_bytes()).hexdigest()
    return hashlib.sha256(f"{trained} {added}".encode()).hexdigest()


def trained_key(run: Run) -> str:
    """Return `origin_key` as it is without pairs that were never trained."""
    state = hashlib.sha256(f"{_FORMAT} {qtool.__version__}".encode())
    for name in ("recipe.json", *(stage.file for stage in _DEPLOYED)):
        path = run.path(name)
        content = path.read_bytes() if path.exists() else b""
        state.update(hashlib.sha256(content).digest())
    return state.hexdigest()


def _require_own_bits(run: Run, selection: Selection) -> None:
    """Refuse other bits of what a search chose of a jointly trained run."""
    own = run.selection()
    is_own = (selection.layers, selection.default) == (own.layers, own.default)
    if run.is_chosen and not is_own:
        raise UserError(
            f"run {run.folder} is what a search chose, with statistics of its own bits only: "
            "leave out --bits, or use the run that was searched"
        )


def zero_shot_told(run: Run, selection: Selection) -> str:
    """Say what widths of `selection` that were never trained were given; "" of none."""
    found = zero_shot_pairs(run)
    if selection.default in found and not selection.layers:
        return str(found[selection.default])
    asked = [bits for bits in (selection.default, *selection.layers.values()) if bits]
    return "; ".join(str(pair) for pair in found.values() if any(map(pair.concerns, asked)))


def _read(run: Run, key: str) -> ir.Model | None:
    """Return the graph in the run directory if it was traced from `key`."""
    try:
        model = _parse(run.path("adaptive.onnx").read_bytes())
    except Exception:  # absent, or damaged in whatever way: it is made again
        return None
    return model if model.metadata_props.get(_KEY) == key else None


def _parse(data: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_model_from_string(data))
