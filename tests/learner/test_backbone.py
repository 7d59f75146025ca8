"""Encoders by name: sizes as published, names as in torchvision."""

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import Bottleneck

from learner.backbone import BACKBONES, Convnet, build_backbone

PUBLISHED = {
    "resnet18": 11_689_512,  # torchvision, as are all that are not in millions
    "resnet50": 25_557_032,
    "resnext101_32x4d": 44.18e6,  # timm's table, as are the other numbers in millions with two digits
    "resnext101_32x8d": 88_791_336,
    "resnext101_32x16d": 194.03e6,
    "resnext101_32x32d": 468.53e6,
    "resnext101_32x48d": 828.41e6,
    "regnet_y_400mf": 4_344_144,
    "regnet_y_800mf": 6_432_512,
    "regnet_y_1_6gf": 11_202_430,
    "regnet_y_3_2gf": 19_436_338,
    "regnet_y_8gf": 39_381_472,
    "regnet_y_16gf": 83_590_140,
    "regnet_y_32gf": 145_046_770,
    "regnet_y_64gf": 281.38e6,
    "regnet_y_128gf": 644_812_894,
}
"""Parameters with a classifier of 1000 classes."""

WITHOUT_CLASSIFIER = {"resnet50w2": 94e6, "resnet50w4": 375e6, "resnet50w5": 586e6}
"""arXiv:2006.09882, in whole millions."""

SMALL = [name for name in BACKBONES if name.startswith(("resnet8", "resnet14")) or name == "resnet18-cifar"]


@pytest.mark.parametrize("name", BACKBONES)
def test_parameters_width_and_stride_are_what_the_table_says(name: str) -> None:
    maps: list[tuple[int, ...]] = []
    side = 32 if name in SMALL else 224
    with torch.device("meta"):
        net = build_backbone(name)
        images = torch.empty(2, 3, side, side)
    pool = net.get_submodule("avgpool")
    pool.register_forward_hook(lambda _, inputs, __: maps.append(tuple(inputs[0].shape[-2:])))
    assert sum(parameter.numel() for parameter in net.parameters()) == BACKBONES[name].parameters
    assert net(images).shape == (2, BACKBONES[name].width)
    assert maps == [(side // BACKBONES[name].stride, side // BACKBONES[name].stride)]


def strided(name: str) -> list[tuple[str, nn.Conv2d]]:
    """Convolutions that have a stride and padding."""
    found = []
    for key, module in build_backbone(name).named_modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.kernel_size[0] in {3, 7}:
            found.append((key, module))
    return found


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "resnet8-w32"])
def test_taps_that_meet_padding_only_have_no_gradient(name: str) -> None:
    """In bfloat16 on a CPU with AMX they had what was left in memory there, which is filled here."""
    assert strided(name)
    for key, conv in strided(name):
        x = torch.randn(16, conv.in_channels, 1, 1)
        middle = int(conv.padding[0])
        for attempt in range(4):
            left = [torch.full((size,), 2.0 ** (60 + attempt)) for size in (2**12, 2**14, 2**16, 2**18)]
            del left
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = conv(x)
            (gradient,) = torch.autograd.grad(y.float().square().sum(), [conv.weight])
            assert bool(gradient[:, :, middle, middle].any()), key
            gradient[:, :, middle, middle] = 0
            assert not bool(gradient.any()), key


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf"])
def test_on_one_pixel_the_middle_tap_alone_is_the_whole_convolution(name: str) -> None:
    for _, conv in strided(name):
        conv.double()
        x = torch.randn(3, conv.in_channels, 1, 1, dtype=torch.float64, requires_grad=True)
        ours = conv(x)
        theirs = nn.functional.conv2d(
            x, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups
        )
        torch.testing.assert_close(ours, theirs)
        for one, other in zip(
            torch.autograd.grad(ours.square().sum(), [x, conv.weight]),
            torch.autograd.grad(theirs.square().sum(), [x, conv.weight]),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


def test_first_weights_and_all_that_is_drawn_after_them_are_those_of_torchvision() -> None:
    ends = []
    for build in (build_backbone, lambda _: BACKBONES["resnet18"].build()):
        torch.manual_seed(0)
        net = build("resnet18")
        ends.append((net.state_dict(), torch.rand(3)))
    assert ends[0][0].keys() == ends[1][0].keys()
    assert all(torch.equal(ends[0][0][key], ends[1][0][key]) for key in ends[0][0])
    assert torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_with_a_classifier_are_the_published_ones(name: str) -> None:
    total = BACKBONES[name].parameters + 1000 * (BACKBONES[name].width + 1)
    published = PUBLISHED[name]
    assert total == published or (isinstance(published, float) and abs(total - published) < 0.005e6)


@pytest.mark.parametrize("name", WITHOUT_CLASSIFIER)
def test_parameters_of_the_wide_ones_are_the_published_ones(name: str) -> None:
    assert abs(BACKBONES[name].parameters - WITHOUT_CLASSIFIER[name]) < 0.5e6


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101_32x8d"])
def test_weights_are_named_and_shaped_as_in_torchvision(name: str) -> None:
    with torch.device("meta"):
        ours = build_backbone(name).state_dict()
        theirs = getattr(models, name)(weights=None).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == expected


def test_regnet_weights_are_named_and_shaped_as_in_torchvision() -> None:
    ours = build_backbone("regnet_y_400mf").state_dict()
    theirs = models.regnet_y_400mf(weights=None).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == expected


def test_the_wide_family_at_width_one_is_torchvisions_resnet50() -> None:
    torch.manual_seed(0)
    ours = Convnet(Bottleneck, (3, 4, 6, 3), width=64, stem="7x7").eval()
    theirs = build_backbone("resnet50").eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("side", [8, 16, 18, 32])
def test_small_nets_take_small_crops(side: int) -> None:
    net = build_backbone("resnet8-w32").eval()
    assert net(torch.randn(2, 3, side, side)).shape == (2, 128)


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "resnet8-w32"])
def test_activation_checkpointing_changes_neither_values_nor_statistics(name: str) -> None:
    ends = []
    for again in (False, True):
        torch.manual_seed(0)
        net = build_backbone(name, activation_checkpointing=again).double()
        images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
        features = net(images)
        features.square().sum().backward()
        gradient = {key: value.grad for key, value in net.named_parameters()}
        ends.append((features, gradient, net.state_dict()))
    (plain, plain_gradient, plain_state), (again_, again_gradient, again_state) = ends
    assert torch.equal(plain, again_)
    assert plain_gradient.keys() == again_gradient.keys()
    for key, expected in plain_gradient.items():
        torch.testing.assert_close(again_gradient[key], expected)
    assert plain_state.keys() == again_state.keys()
    for key, expected in plain_state.items():
        assert torch.equal(again_state[key], expected), key


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"'resnet8_w64' is not known; did you mean resnet8-w64\?"):
        build_backbone("resnet8_w64")
