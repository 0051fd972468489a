"""MEBQAT-PN and MEBQAT-MAML (arXiv 2207.10188): as published, scaled down, and baselines.

Published (paper and released code), tested with 15 queries a class:

PN      200 epochs of 100 episodes, four tasks each; Adam at 1e-3, halved every 40 epochs.
        Omniglot: trained on 60 ways (Snell et al. 2017), tested on 20. MiniImageNet: trained
        on 20 ways at 5 shots and 30 at 1 shot, tested on 5.
MAML    75 epochs of 800 steps of Adam at 1e-4; the inner loop takes 5 steps. Omniglot: 20
        ways, 1 shot, 16 tasks a step, inner learning rate 0.1. MiniImageNet: 5 ways, 5 shots,
        4 tasks, 0.01.

The short recipes have a step of the quantizers for every bit-width, where the published ones
share it: low bit-widths then learn much sooner.

Omniglot's split here is the publisher's own (`qtool.data.fewshot`), the paper's is Vinyals'.
"""

from dataclasses import replace
from typing import TypeVar

from qtool.settings.episodes import EpisodeConfig, MamlConfig, PnConfig

RecipeT = TypeVar("RecipeT", bound=EpisodeConfig)
_HALVED = (0.2, 0.4, 0.6, 0.8)


def mebqat_pn_omniglot() -> PnConfig:
    """MEBQAT-PN as published, Omniglot 20-way 5-shot; --set shots=1 for 1-shot."""
    return PnConfig(
        name="mebqat_pn_omniglot",
        model="cnn4_omniglot",
        dataset="omniglot_fewshot",
        schedule="multistep",
        milestones=_HALVED,
        gamma=0.5,
        ways=60,
        shots=5,
        queries=5,
        epochs=200,
        episodes=100,
        lr=1e-3,
    )


def mebqat_pn_omniglot_short() -> PnConfig:
    """MEBQAT-PN on Omniglot, trained on 20 ways: 45 minutes on one core."""
    return replace(
        mebqat_pn_omniglot(),
        name="mebqat_pn_omniglot_short",
        shared_steps=False,
        ways=20,
        epochs=35,
        transductive_episodes=40,
    )


def pn_omniglot_short() -> PnConfig:
    """Prototypical networks on Omniglot in floating point; --set bits=w8a3 for PN + QAT."""
    return _at_one_pair(mebqat_pn_omniglot_short(), "pn_omniglot_short")


def mebqat_pn_miniimagenet() -> PnConfig:
    """MEBQAT-PN as published, MiniImageNet 5-way 5-shot; 1-shot: --set shots=1, ways=30."""
    return replace(
        mebqat_pn_omniglot(),
        name="mebqat_pn_miniimagenet",
        model="cnn4_miniimagenet",
        dataset="miniimagenet_fewshot",
        ways=20,
        queries=15,
        batch_size=64,
        norm_batches=4,
        calibration_images=64,
        test_ways=5,
        test_bits=("w2a2", "w2a3", "fp"),
    )


def mebqat_pn_miniimagenet_short() -> PnConfig:
    """MEBQAT-PN on MiniImageNet, trained on 5 ways: 45 minutes on one core."""
    return replace(
        mebqat_pn_miniimagenet(),
        name="mebqat_pn_miniimagenet_short",
        shared_steps=False,
        ways=5,
        queries=5,
        epochs=12,
        transductive_episodes=40,
    )


def pn_miniimagenet_short() -> PnConfig:
    """Prototypical networks on MiniImageNet in floating point; bits=w2a2 for PN + QAT."""
    return _at_one_pair(mebqat_pn_miniimagenet_short(), "pn_miniimagenet_short")


def mebqat_maml_omniglot() -> MamlConfig:
    """MEBQAT-MAML as published, Omniglot 20-way 1-shot; --set shots=5 for 5-shot."""
    return MamlConfig(
        name="mebqat_maml_omniglot",
        model="cnn5_omniglot",
        dataset="omniglot_fewshot",
        schedule="multistep",
        milestones=(),
        test_bits=("w3a8", "w2a2", "w8a8", "fp"),
    )


def mebqat_maml_omniglot_short() -> MamlConfig:
    """MEBQAT-MAML on Omniglot, four tasks a step: 45 minutes on one core."""
    return replace(
        mebqat_maml_omniglot(),
        name="mebqat_maml_omniglot_short",
        shared_steps=False,
        tasks=4,
        queries=5,
        epochs=25,
        episodes=100,
        lr=1e-3,
        milestones=(0.7, 0.9),
        gamma=0.3,
        test_episodes=200,
    )


def fomaml_omniglot_short() -> MamlConfig:
    """First-order MAML on Omniglot in floating point; bits=w3a8 for FOMAML + QAT."""
    return _at_one_pair(mebqat_maml_omniglot_short(), "fomaml_omniglot_short")


def mebqat_maml_miniimagenet() -> MamlConfig:
    """MEBQAT-MAML as published, MiniImageNet 5-way 5-shot; --set shots=1 for 1-shot."""
    return replace(
        mebqat_maml_omniglot(),
        name="mebqat_maml_miniimagenet",
        model="cnn5_miniimagenet",
        dataset="miniimagenet_fewshot",
        ways=5,
        test_ways=5,
        shots=5,
        tasks=4,
        inner_lr=0.01,
        batch_size=64,
        norm_batches=4,
        calibration_images=64,
        test_bits=("w2a4", "w8a2", "fp"),
    )


def _at_one_pair(recipe: RecipeT, name: str) -> RecipeT:
    """Return the baseline of `recipe`, in floating point: its bit-widths share no steps."""
    return replace(recipe, name=name, bits="fp", shared_steps=False)
