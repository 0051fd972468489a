"""The standard topologies: torchvision's parameter names and sizes, exact MACs and BOPs."""

import pytest
from torch import nn

from qtool.core.cost import (
    LayerBits,
    format_count,
    parse_count,
    total_bops,
    total_macs,
    with_bits,
)
from qtool.core.errors import UserError
from qtool.models import MODELS, model_factory
from qtool.models.macs import count_macs

# state dict entries, parameters, and some names of torchvision's models
PUBLISHED = {
    "mobilenet_v2": (
        314, 3_504_872,
        {"features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.2.running_var",
         "features.17.conv.1.1.bias", "features.18.1.weight", "classifier.1.weight"},
    ),
    "resnet18": (
        122, 11_689_512,
        {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias",
         "layer2.0.downsample.0.weight", "layer4.1.bn2.num_batches_tracked"},
    ),
    "resnet34": (218, 21_797_672, {"layer3.5.conv2.weight", "layer4.2.bn1.bias"}),
    "resnet50": (
        320, 25_557_032,
        {"layer1.0.downsample.0.weight", "layer3.5.conv3.weight", "layer4.2.bn3.running_var"},
    ),
}  # fmt: skip
# weight and activation bits, first and last, BOPs (MetaMix's convention)
BOPS = [
    ("mobilenet_v2", 4, 8, 5_394_053_120),
    ("mobilenet_v2", 4, None, 4_812_388_352),
    ("mobilenet_v2", 8, None, 19_249_553_408),
    ("resnet18", 4, 8, 34_714_419_200),
    ("resnet18", 4, None, 29_025_173_504),
    ("resnet18", 8, None, 116_100_694_016),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_fit(name: str) -> None:
    entries, parameters, names = PUBLISHED[name]
    model: nn.Module = model_factory(name)()
    state = model.state_dict()
    assert len(state) == entries and names <= set(state)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("name", "bits", "ends", "expected"), BOPS)
def test_bops_of_standard_topologies(
    name: str, bits: int, ends: int | None, expected: int
) -> None:
    macs = count_macs(model_factory(name)(), MODELS[name].input_shape)
    costs = with_bits(macs, LayerBits(bits, bits), ends)
    assert total_bops(costs) == expected
    assert total_macs(costs) == {"mobilenet_v2": 300_774_272, "resnet18": 1_814_073_344}[name]


def test_an_image_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="input 1x224x224 does not fit the model"):
        count_macs(model_factory("resnet18")(), (1, 224, 224))


@pytest.mark.parametrize(
    ("text", "count"),
    [("5.3G", 5.3e9), ("300M", 3e8), ("1.2e9", 1.2e9), (" 7k ", 7e3), ("9", 9)],
)
def test_budgets_are_read(text: str, count: float) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("count", "text"), [(5_394_053_120, "5.394 G"), (48e6, "48.000 M"), (12, "12")]
)
def test_counts_are_shown(count: float, text: str) -> None:
    assert format_count(count) == text
