"""Adaptation of a few-shot run to a user's classes at one pair of bits (MEBQAT, Figure 3).

The result is a run at these bits, whose network answers with one of the classes.
"""

from collections.abc import Callable
from pathlib import Path

from qtool.core.errors import UserError
from qtool.core.files import write_json
from qtool.core.pairs import deployable, pair_name, parse_pairs
from qtool.core.selection import LayerBits
from qtool.data import load_dataset
from qtool.data.images import DataSet
from qtool.data.support import class_names, support_name
from qtool.frontends.mebqat.adapt_maml import check_maml, give_weights
from qtool.frontends.mebqat.adapt_pn import check_pn, give_prototypes
from qtool.networks import load_deployed
from qtool.runs.attempt import begun
from qtool.runs.run import CLASSES, Run
from qtool.settings.adapted import AdaptedConfig
from qtool.settings.episodes import EpisodeConfig, MamlConfig
from qtool.training.evaluation import accuracy


def adapt(source: Run, support: Path, bits: str, out: Path, force: bool) -> str:
    """Adapt `source` to the classes in the folder `support`; leaves a run in `out`.

    Args:
        source: run of a few-shot frontend.
        support: ``CLASS/*`` in it.
        bits: the pair, as the user gave it.
        out: directory of the new run.
        force: replace the run there.

    Returns:
        What was done, in words.

    Raises:
        UserError: no few-shot run, bits that it was not trained for, a folder with too few
            classes or damaged images, `out` is the source.
    """
    config = source.settings(EpisodeConfig)
    pair, names = _pair(config, bits), class_names(support)
    dataset, size = support_name(config.dataset, source.input_shape), source.input_shape[-1]
    data = load_dataset(dataset, support, size)
    make = _method(source, config, data)
    with begun(out, _recipe(source, config, dataset), data, False, force, whole=True) as run:
        make(source, run, pair, data)
        write_json(run.path(CLASSES), {"classes": names})
        return _told(run, pair, names, data)


def _method(
    source: Run, config: EpisodeConfig, data: DataSet
) -> Callable[[Run, Run, LayerBits, DataSet], None]:
    """Return what fills the new run; refuse what it would refuse."""
    if isinstance(config, MamlConfig):
        check_maml(source, data)
        return give_weights
    check_pn(config)
    return give_prototypes


def _pair(config: EpisodeConfig, bits: str) -> LayerBits:
    """Return the pair that the user asks for.

    Raises:
        UserError: it is none of the candidates', several, or floating point.
    """
    pairs = parse_pairs(bits, config.pairs())
    if len(pairs) > 1 or not deployable(pairs[0]):
        raise UserError(
            f"--bits {bits!r}: expected one pair of at most 8 bits, such as "
            f"{config.example_bits}: the adapted network is one of integers"
        )
    return pairs[0]


def _recipe(source: Run, config: EpisodeConfig, dataset: str) -> AdaptedConfig:
    """Return the recipe of a run that `source` is adapted to."""
    return AdaptedConfig(
        name=config.name, model=config.model, dataset=dataset, glue_bits=config.glue_bits,
        first_last_bits=config.first_last_bits, mean=config.mean, std=config.std,
        asymmetric=True, quantizer=config.quantizer, weight_quantizer=config.weight_quantizer,
        activation_quantizer=config.activation_quantizer, allow_float=config.allow_float,
        image_size=source.input_shape[-1], seed=config.seed, source=str(source.folder),
        prototypes=config.open_end, embedding_classes=source.classes * config.open_end,
    )  # fmt: skip


def _told(run: Run, pair: LayerBits, names: list[str], data: DataSet) -> str:
    """Say what the run was made of, and how well it knows these images themselves."""
    known = accuracy(load_deployed(run, run.selection()), data.train)
    run.add_metrics(phase="adapt", bits=pair_name(pair), support_accuracy=known)
    return (
        f"{len(names)} classes from {len(data.train)} images at {pair_name(pair)}; "
        f"{known:.1f} % of these images are of their own class"
    )
