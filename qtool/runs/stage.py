"""What a run's weights are of: ``STAGE.safetensors`` in its directory."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage that a run's weights have been saved at, in order.

    Attributes:
        FLOAT: the float network, the reference of everything after it.
        META: prepared network whose weights serve every candidate, where every search starts.
        SEARCHED: prepared network after a search, where fine-tuning starts.
        MODEL: prepared network as it is deployed now.
        CORRECTIONS: tensors that replace those of `MODEL` at other uniform bits: w4a4/NAME.
        NORMS: BatchNorm's statistics at every other pair of bits that they were taken at,
            which `MODEL` may be deployed at and no others: w4a4/NAME.
        ZERO_SHOT: BatchNorm's tensors at pairs that were never trained: w5a5/NAME.
    """

    FLOAT = "float"
    META = "meta"
    SEARCHED = "searched"
    MODEL = "model"
    CORRECTIONS = "corrections"
    NORMS = "norms"
    ZERO_SHOT = "zero_shot"

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self}.safetensors"
