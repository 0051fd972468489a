"""What `qtool search` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qtool.core.errors import UserError
from qtool.core.pairs import deployable, pair_key
from qtool.core.selection import LayerBits
from qtool.search import HELD_OUT_IMAGES, JOINT_METHOD, META_METHOD, METHODS
from qtool.search.limits import KINDS
from qtool.settings.base import Config, TrainConfig
from qtool.settings.override import override
from qtool.settings.search import SearchSettings, missing_settings, search_settings

POWERS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Budget:
    """Upper bounds per image, in BOPs, bytes and seconds; None: no bound."""

    bops: float | None = None
    bytes: float | None = None
    seconds: float | None = None

    @property
    def bounds(self) -> dict[str, float]:
        """Bounds by `qtool.search.limits.KINDS`, those that there are."""
        values = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: value for kind, value in values.items() if value is not None}

    @property
    def name(self) -> str:
        """What tells it from others, for folders: ``670.081M`` or ``1.2M-250KB``."""
        return "-".join(_short(kind, value) for kind, value in self.bounds.items())


def _short(kind: str, value: float) -> str:
    text = KINDS[kind].text(value).replace(" ", "").removesuffix("BOPs")
    number = text.rstrip("KMGTBms")
    if "." in number:
        text = number.rstrip("0").rstrip(".") + text[len(number) :]
    return text


@dataclass(frozen=True)
class Request:
    """One call of the search.

    Args:
        budgets: one or several; none where `front` says how many.
        method: a key of `qtool.search.METHODS`; "": what suits the run.
        weights: weight candidates; empty: the run's own.
        activations: activation candidates; empty: the run's own.
        power_of_two: only candidates of 1, 2, 4 and 8 bits.
        settings: ``key=value`` that the search and the fine-tuning take instead of the run's.
        finetune: train at the chosen bits; None: where weights do not serve them already.
        out: folder for the results; None: in the run.
        runtime: where latency is measured.
        latency_table: file that keeps its measurements; None: none.
        resume, force: continue an interrupted search; replace an earlier one's results.
        front: as many budgets in BOPs, between what the uniform bits cost.
        held_out: training images that results on jointly trained runs are measured on.
    """

    budgets: tuple[Budget, ...] = ()
    method: str = ""
    weights: tuple[int, ...] = ()
    activations: tuple[int, ...] = ()
    power_of_two: bool = False
    settings: tuple[str, ...] = ()
    finetune: bool | None = None
    out: Path | None = None
    runtime: str = "tvm"
    latency_table: Path | None = None
    resume: bool = False
    force: bool = False
    front: int = 0
    held_out: int = HELD_OUT_IMAGES

    def for_run(self, is_joint: bool) -> "Request":
        """Return the request with what is left to the run decided.

        Args:
            is_joint: as of `qtool.training.frontend.SearchStart`.

        Raises:
            UserError: a method that searches something else.
        """
        method = self.method or (JOINT_METHOD if is_joint else META_METHOD)
        if not METHODS[method].searches(is_joint):
            known = [name for name in METHODS if METHODS[name].searches(is_joint)]
            kind = "jointly trained weights" if is_joint else "a meta-state"
            raise UserError(
                f"--method {method} does not search {kind}, as this run has them: "
                f"choose {' or '.join(known)}"
            )
        finetune = not is_joint if self.finetune is None else self.finetune
        return replace(self, method=method, finetune=finetune)

    def pairs(self, config: Config) -> list[LayerBits]:
        """Return what a layer of a jointly trained run of `config` may have.

        Raises:
            UserError: candidates that were not trained, or that leave no choice.
        """
        pairs = [pair for pair in config.pairs() if deployable(pair)]
        for option, asked, what in (
            ("--weights", self.weights, "weight"),
            ("--activations", self.activations, "activation"),
        ):
            trained = list(dict.fromkeys(getattr(pair, what) for pair in pairs))
            if missing := [bits for bits in asked if bits not in trained]:
                raise UserError(
                    f"{option} {_joined(asked)}: the run was not trained at "
                    f"{_joined(missing)} bits, but at {_joined(trained)}"
                )
            kept = self._candidates(asked or tuple(trained), option)
            pairs = [pair for pair in pairs if getattr(pair, what) in kept]
        if len(pairs) < 2:
            left = ", ".join(map(pair_key, pairs)) or "no pair"
            raise UserError(
                f"{left} of the run's leaves nothing to search: give more bits with "
                "--activations or --weights"
            )
        return pairs

    def recipe(self, recipe: TrainConfig) -> TrainConfig:
        """Return the results' recipe but for its candidates.

        Raises:
            UserError: settings unknown or out of range.
        """
        return override(recipe, self._given(recipe, beside=False))

    def config(self, recipe: TrainConfig) -> TrainConfig:
        """Return the results' recipe: candidates and settings of this search in its fields.

        Raises:
            UserError: settings unknown or out of range, no candidates left.
        """
        config = self.recipe(recipe)
        weights = self._candidates(self.weights or _tuple(config.weight_bits), "--weights")
        own = self.activations or config.activation_bits
        activations = self._candidates(own, "--activations")
        if len(weights) * len(activations) == 1:
            raise UserError(
                f"weights of {weights[0]} and activations of {activations[0]} bits leave "
                "nothing to search: give several with --activations or --weights"
            )
        texts = [f"activation_bits={_joined(activations)}"]
        if override(config, texts).weight_candidates != weights:
            texts.append(f"weight_bits={_joined(weights)}")
        return override(config, texts)

    def search_settings(self, recipe: TrainConfig) -> SearchSettings:
        """Return what this search reads; `recipe` is the results'.

        Raises:
            UserError: settings out of range.
        """
        return override(search_settings(recipe), self._given(recipe, beside=True))

    def _given(self, recipe: TrainConfig, beside: bool) -> list[str]:
        """Return the settings that `recipe` has fields for, or those `beside` it."""
        missing = missing_settings(recipe)
        return [s for s in self.settings if (s.partition("=")[0] in missing) is beside]

    def _candidates(self, bits: tuple[int, ...], option: str) -> tuple[int, ...]:
        if not self.power_of_two:
            return bits
        kept = tuple(b for b in bits if b in POWERS)
        if not kept:
            raise UserError(f"{option}: none of {_joined(bits)} is a power of two: name some")
        return kept


def _tuple(bits: int | Sequence[int]) -> tuple[int, ...]:
    return (bits,) if isinstance(bits, int) else tuple(bits)


def _joined(bits: Sequence[int]) -> str:
    return ",".join(map(str, bits))
