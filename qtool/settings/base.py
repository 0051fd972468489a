"""Recipes are frozen dataclasses; ``--set key=value`` overrides a field, type-checked.

Every frontend has a class of its own, `CONFIGS` says which; what the run directory, the export
and the check read is in their common base.
"""

from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Config:
    """What every frontend's settings have: the network, its images and its quantizers.

    Args:
        name: the recipe.
        model: network, as in `qtool list models`.
        dataset: images, as in `qtool list datasets`.
        frontend: who makes the run: a key of `CONFIGS`.
        activation_bits: candidates of every inner layer's input.
        weight_bits: bits, or candidates, of every inner layer's weight.
        first_last_bits: weights and inputs of the first and the last layer; 32: float.
        glue_bits: residual, pooling and output tensors.
        mean, std: per channel: the network sees (pixel / 255 - mean) / std; empty: as it is.
        asymmetric: signed activations have zero points that fit their range.
        quantizer: of weights and layer inputs, as in `qtool.quantizers.QUANTIZERS`.
        weight_quantizer, activation_quantizer: of one of them, if another; empty: `quantizer`.
        batch_size: images at a time.
        train_images: training images that are used, the first ones; 0 for all.
        image_size: side of images that are files, in pixels; 0: usual of the data set.
        frames: images a clip, of video; 0: 8.
        seed: of everything that is drawn.
    """

    name: str
    model: str
    dataset: str
    frontend: str = ""
    activation_bits: tuple[int, ...] = (8, 4, 3)
    weight_bits: int | tuple[int, ...] = 4
    first_last_bits: int = 8
    glue_bits: int = 8
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    asymmetric: bool = False
    quantizer: str = "lsq"
    weight_quantizer: str = ""
    activation_quantizer: str = ""
    batch_size: int = 128
    train_images: int = 0
    image_size: int = 0
    frames: int = 0
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig(Config):
    """What every frontend that trains has: data, loss, optimizer, schedule, machine.

    Args:
        augment: what is done to training images, as in `qtool.data.augment`.
        workers: processes that decode images ahead, for data that is not in memory.
        label_smoothing: of the cross-entropy.
        optimizer: sgd (Nesterov momentum), adam or adamw.
        momentum: of sgd.
        weight_decay: of weight tensors; BatchNorm and biases have none.
        alpha_weight_decay: of clipping levels ("alpha", PACT).
        step_lr_factor: learning rate of quantizers' parameters, relative to the weights'.
        clip_norm: largest norm of all gradients together; 0 for any.
        accumulate: parts that a batch is computed in, one after the other.
        ema: decay of the average of all weights that is evaluated and saved; 0 for none.
        schedule: cosine or multistep, of the learning rate.
        warmup: share of a phase in which the learning rate grows.
        milestones: multistep: shares of a phase after which the rate is multiplied.
        gamma: multistep: by what.
        norm_batches: whose statistics replace BatchNorm's running averages after a phase.
        teacher: float weights to distil from, a file or a run directory; empty for none.
        teacher_model: the network of a teacher's weights file; empty: the same as `model`.
        distill_weight: share of the loss that compares with the teacher.
        temperature: at which it does.
        device: cpu, cuda, or auto: cuda where there is one.
        autocast: compute in bfloat16 what `torch.autocast` does.
        checkpoint_minutes: a checkpoint is written that often inside an epoch; 0: at its end.
        checkpoint_steps: and after so many batches; 0: at its end.
    """

    augment: tuple[str, ...] = ("flip",)
    workers: int = 0
    label_smoothing: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    alpha_weight_decay: float = 5e-4
    step_lr_factor: float = 0.1
    clip_norm: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    norm_batches: int = 40
    teacher: str = ""
    teacher_model: str = ""
    distill_weight: float = 0.5
    temperature: float = 4.0
    device: str = "auto"
    autocast: bool = False
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0


ConfigT = TypeVar("ConfigT", bound=Config)
