"""``qtool export RUN --bits all``: a run at every pair of its candidates, weights once."""

from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from shlex import quote

import onnx_ir as ir

from passes.emit.base import Inspect, Note, refuse_unwritable
from passes.raw_pixels import UseRawPixels
from qtool.core.errors import UnsupportedError, UserError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.pairs import ALL, FLOAT, deployable, pair_name, parse_pair, parse_pairs
from qtool.core.selection import LayerBits, Selection
from qtool.export.adaptive import RunSource
from qtool.export.export import ExportOptions, integer_model_at
from qtool.runs.run import Run
from qtool.runs.zero_shot import zero_shot_pairs


def names_pairs(bits: str | None) -> bool:
    """True where ``--bits`` asks for several pairs: ``all``, or such as ``w8a8,w4a4``.

    So does ``fp``, which means a pair in such lists and nothing elsewhere.
    """
    if bits is None:
        return False
    parts = [part.strip() for part in bits.split(",")]
    plain = len(parts) > 1 and all(parse_pair(part) is not None for part in parts)
    return plain or _asks_all(bits) or bits.strip().lower() == FLOAT


def pairs_of(run: Run, bits: str) -> list[LayerBits]:
    """Return the pairs that `bits` names, of those that an integer runtime has.

    Raises:
        UserError: a pair that the run does not have or that is no export, or a run without
            candidates.
    """
    asked = [pair for part in bits.split(",") if (pair := parse_pair(part.strip()))]
    floats = [pair for pair in asked if {*astuple(pair)} & {*FLOAT_WIDTHS}]
    if floats:
        name = pair_name(floats[0])
        raise UserError(
            f"--bits {bits!r}: {name} has no integer form, so there is no export of it; leave "
            f"it out (qtool eval {quote(str(run.folder))} --bits {name} measures it)"
        )
    known = [pair for pair in run.config.pairs() if deployable(pair)]
    if not _asks_all(bits):
        known += zero_shot_pairs(run)
    if not known:
        raise UserError(
            f"run {run.folder}: --bits {bits} needs candidates of several bit-widths, and "
            f"frontend {run.config.frontend} trains one width a layer; leave --bits out"
        )
    return parse_pairs(bits, known)


def export_pairs(
    folder: Path,
    options: ExportOptions,
    output: Path | None,
    force: bool,
    note: Note = lambda text: None,
    inspect_at: Callable[[str], Inspect] | None = None,
) -> list[Path]:
    """Export the run in `folder` at the pairs that ``options.bits`` names.

    Args:
        folder: the run.
        options: what becomes of it.
        output: the folder that gets the files, or what else the target takes.
        force: existing files may be replaced.
        note: is told what is going on.
        inspect_at: returns what is given a pair's graph before anything is written, as in
            `qtool.export.export.export`; by the pair's name.

    Returns:
        The files; with ``all``, not of pairs without an integer form.

    Raises:
        UserError: pairs that there are not, or without an integer form.
    """
    source = RunSource.open(folder)
    pairs = {pair_name(pair): pair for pair in pairs_of(source.run, options.bits or ALL)}
    files = options.target.pair_files(list(pairs), output)
    refuse_unwritable(files, force)
    dialects, left_out = _graphs(source, pairs, options, note, inspect_at)
    if not dialects:
        name, reason = next(iter(left_out.items()))
        raise UserError(f"run {folder}: no pair has an integer form; {name}: {reason}")
    for sentence in options.target.write_pairs(dialects, output, note, left_out):
        note(sentence)
    return options.target.pair_files(list(dialects), output)


def _graphs(
    source: RunSource,
    pairs: Mapping[str, LayerBits],
    options: ExportOptions,
    note: Note,
    inspect_at: Callable[[str], Inspect] | None,
) -> tuple[dict[str, ir.Model], dict[str, str]]:
    """Return the pairs' graphs, and why pairs have none: only where all are asked for."""
    graphs, left_out = dict[str, ir.Model](), dict[str, str]()
    for number, (name, pair) in enumerate(pairs.items(), 1):
        note(f"pair {name}, {number} of {len(pairs)}")
        selection = Selection(default=pair, source="--bits")
        try:
            dialect = integer_model_at(source, selection, options.allow_float)
        except UnsupportedError as error:
            if not _asks_all(options.bits):
                raise
            left_out[name] = str(error)
            note(f"pair {name} is left out: {error}")
            continue
        if options.raw_pixels:
            UseRawPixels()(dialect)
        if inspect_at is not None:
            inspect_at(name)(dialect)
        graphs[name] = dialect
    return graphs, left_out


def _asks_all(bits: str | None) -> bool:
    """True where no pair is named: that there is none of some is no mistake then."""
    return (bits or ALL).strip().lower() == ALL
