"""What must hold between an artifact and its origin, and a sentence for all that does not.

1. Integers that the origin has too are the same. In float islands and behind them sums of
   floats may differ in their order: there most of a tensor's integers are the same.
2. No tensor falls below so many dB at once: by `DROP_DB` from the tensors that it is computed
   from. Rounding adds up over a deep network, and a network that amplifies it ends at any
   ratio without a wrong number in it; what is wrong is wrong from one tensor to the next.
   A difference of `ROUNDING` steps of its grid is never a wrong number, however weak the
   signal is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from passes.twins import Key, Twin
from qtool.core.dialect import Program
from qtool.core.errors import UserError
from qtool.witness.compare import OUTPUT, agreement, compare, total
from qtool.witness.figures import SAME_DB
from qtool.witness.origin import Answers, Known
from qtool.witness.record import Differing, TensorFigures, WitnessRecord

ROUNDING = 2.0
DROP_DB = 10.0
# One tie spreads over a third of a deep network's tensor; what is wrong differs in most of it.
BEHIND_ISLANDS = 0.5
_SHOWN = 6  # operators in a sentence


@dataclass(frozen=True)
class Required:
    """What must hold.

    Args:
        floor_db: signal-to-noise ratio of every tensor; None: any.
        share: of a tensor's integers may differ; None: all.
    """

    floor_db: float | None
    share: float | None


@dataclass(frozen=True)
class Setting:
    """What a record says of how it came about.

    Args:
        origin: in words.
        inputs: in words.
        images: how many.
        required: what must hold.
    """

    origin: str
    inputs: str
    images: int
    required: Required


def judge(
    setting: Setting,
    program: Program,
    twins: Mapping[Key, Twin],
    known: Known,
    answers: Answers,
) -> WitnessRecord:
    """Return the record of what origin and artifact answered to the same images."""
    figures = compare(program, twins, known, answers)
    ratios = {f.tensor: f.snr_db for f in figures if f.snr_db is not None}
    lowest = min(ratios, key=lambda name: ratios[name], default=None)
    return WitnessRecord(
        origin=setting.origin,
        inputs=setting.inputs,
        images=setting.images,
        integers=total(figures, False),
        behind_islands=total(figures, True),
        snr_db=ratios.get(OUTPUT),
        lowest_db=None if lowest is None else ratios[lowest],
        lowest=lowest,
        same_class=agreement(known.output, answers.output),
        required_db=setting.required.floor_db,
        tensors=figures,
        fallen=tuple(_fallen(figures, setting.required)),
    )


def _fallen(figures: tuple[TensorFigures, ...], required: Required) -> Iterator[str]:
    reached: dict[str, float] = {}
    for each in figures:
        before = min((reached.get(name, SAME_DB) for name in each.inputs), default=SAME_DB)
        ratio = before if each.snr_db is None else each.snr_db
        reached[each.tensor] = ratio
        where = f"{each.tensor}{_made_by(each)}"
        if _differs(each, required.share):
            yield f"{where}: {_counts(each.codes)} integers differ"
        elif required.floor_db is not None and ratio < required.floor_db:
            if each.snr_db is not None and before - ratio >= DROP_DB and each.steps > ROUNDING:
                yield f"{where}: {ratio:.1f} dB, {required.floor_db:g} dB are required"


def _differs(each: TensorFigures, share: float | None) -> bool:
    if share is None or each.codes is None:
        return False
    allowed = BEHIND_ISLANDS if each.behind_island else share
    return each.codes.mismatched > allowed * each.codes.compared


def _counts(codes: Differing | None) -> str:
    return "" if codes is None else f"{codes.mismatched:,} of {codes.compared:,}"


def _made_by(each: TensorFigures) -> str:
    names = [name for name in each.operators if name != each.tensor]
    more = ["..."] if len(names) > _SHOWN else []
    return f" (made by {', '.join([*more, *names[-_SHOWN:]])})" if names else ""


def require(record: WitnessRecord, advice: str) -> None:
    """Raise `UserError` if anything fell out: names the first tensors.

    Args:
        record: what was found.
        advice: what to do.
    """
    if record.fallen:
        raise UserError(
            f"not what {record.origin} computes, on {record.inputs}: {shown(record)}; {advice}"
        )


def shown(record: WitnessRecord) -> str:
    """Return the first thing that fell out, and how many more did."""
    more = len(record.fallen) - 1
    rest = f", and {more} more tensor{'s' if more > 1 else ''}" if more else ""
    return f"first at {record.fallen[0]}{rest}"


def sentence(record: WitnessRecord) -> str:
    """Return the record in one line."""
    parts = []
    if record.integers.compared:
        counts = record.integers
        parts.append(
            f"{counts.mismatched:,} of {counts.compared:,} integers differ from "
            f"{record.origin}"
        )
    if record.behind_islands.compared:
        counts = record.behind_islands
        parts.append(f"{counts.mismatched:,} of {counts.compared:,} in and behind islands")
    parts.append(_ratios(record))
    return f"{'; '.join(part for part in parts if part)}; {record.inputs}"


def _ratios(record: WitnessRecord) -> str:
    """Return how far the artifact is from the origin's floats."""
    if record.same_class is None:
        return ""
    same = record.snr_db is None or record.snr_db >= SAME_DB
    output = "is the same" if same else f"{record.snr_db:.1f} dB"
    text = f"output {output}, same class for {record.same_class:.4g} %"
    is_known = record.lowest_db is not None and record.lowest_db < SAME_DB
    if is_known and record.lowest != OUTPUT:
        text += f", lowest {record.lowest} {record.lowest_db:.1f} dB"
    return text
