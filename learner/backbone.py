"""Encoders by name: images in, pooled features out. torchvision's where it has them.

F width of the features
"""

import difflib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from learner.group_batchnorm import without_tracking


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """How to make an encoder."""

    build: Callable[[], nn.Module]
    """[B, 3, h, w] -> [B, F] after global average pooling."""
    width: int
    """F."""
    parameters: int
    """Weights and biases without any classifier."""
    stride: int
    """Pixels of the image for each pixel of the last map, in each direction."""


class StridedConv2d(nn.Conv2d):
    """A convolution with a stride, whose gradient is right on maps of one pixel too.

    There the padding is all that the taps around the middle one meet: they add nothing, and their gradient is
    zero. oneDNN's kernel for bfloat16 on CPUs with AMX does not write some of those zeros: what lay in that
    memory became the gradient, up to infinity (torch 2.14; 6 of 10 first updates of a resnet18 on crops of 16
    pixels or with such crops). So the middle tap is computed alone, in every precision and on every device.
    """

    def forward(self, input: Tensor) -> Tensor:  # the name is torch's
        """[B, C, h, w] -> [B, C', h', w']."""
        if input.shape[-2:] != (1, 1):
            return super().forward(input)
        y, x = _pair(self.padding)
        middle = self.weight[:, :, y : y + 1, x : x + 1]
        return nn.functional.conv2d(input, middle, self.bias, groups=self.groups)


def _pair(values: str | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(values, str) or len(values) != 2:
        raise AssertionError("the encoders give a number for each direction")
    return values[0], values[1]


def _guard_strides(net: nn.Module) -> None:
    """Give every padded convolution with a stride the gradient that `StridedConv2d` has."""
    for child in net.modules():
        if type(child) is nn.Conv2d and max(child.stride) > 1:
            kernel, padding = _pair(child.kernel_size), _pair(child.padding)
            # Then a map of one pixel gives one pixel, and its tap is the middle one.
            if max(padding) > 0 and kernel == (2 * padding[0] + 1, 2 * padding[1] + 1):
                child.__class__ = StridedConv2d  # a new module would draw weights of its own


class Convnet(nn.Module):
    """Residual network of any width and stem, named and initialised as torchvision's ResNet.

    Args:
        block: BasicBlock or Bottleneck.
        blocks: residual blocks of each stage; every stage after the first halves the map.
        width: channels of the first stage, doubled by each further one.
        stem: "7x7" with pooling (ImageNet), "4x4" with stride 2, or "3x3" with stride 1 (small images).
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: tuple[int, ...], *, width: int, stem: str
    ) -> None:
        super().__init__()
        kernel, stride, padding = {"7x7": (7, 2, 3), "4x4": (4, 2, 1), "3x3": (3, 1, 1)}[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "7x7" else nn.Identity()
        channels = width
        self._stages: list[str] = []
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            layers: list[nn.Module] = []
            for index in range(count):
                step = 2 if stage > 0 and index == 0 else 1
                layers.append(_residual(block, channels, planes, step))
                channels = planes * block.expansion
            self._stages.append(f"layer{stage + 1}")
            self.add_module(self._stages[-1], nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, F]."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for name in self._stages:
            x = getattr(self, name)(x)
        return torch.flatten(self.avgpool(x), 1)


def _residual(
    block: type[BasicBlock | Bottleneck], channels: int, planes: int, stride: int
) -> BasicBlock | Bottleneck:
    """One residual block, with a projection where the shape changes."""
    out = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out)
        )
    return block(channels, planes, stride, shortcut)


def _torchvision_resnet(
    block: type[BasicBlock | Bottleneck], blocks: list[int], groups: int = 1, group_width: int = 64
) -> nn.Module:
    net: nn.Module = ResNet(block, blocks, num_classes=1, groups=groups, width_per_group=group_width)
    net.fc = nn.Identity()  # no classifier: forward ends with the pooled features
    return net


def _regnet_y(depth: int, w_0: int, w_a: float, w_m: float, group_width: int) -> nn.Module:
    """A network of the RegNetY design space from its five numbers, by torchvision's blocks."""
    with torch.device("cpu"):  # the widths are worked out with tensors, which must hold values
        params = BlockParams.from_init_params(
            depth=depth, w_0=w_0, w_a=w_a, w_m=w_m, group_width=group_width, se_ratio=0.25
        )
    net: nn.Module = RegNet(params, num_classes=1)
    net.fc = nn.Identity()  # as above
    return net


def _small(blocks: tuple[int, ...], width: int, stem: str) -> Callable[[], nn.Module]:
    return partial(Convnet, BasicBlock, blocks, width=width, stem=stem)


def _wide(times: int) -> Callable[[], nn.Module]:
    return partial(Convnet, Bottleneck, (3, 4, 6, 3), width=64 * times, stem="7x7")


def _resnext(group_width: int) -> Callable[[], nn.Module]:
    return partial(_torchvision_resnet, Bottleneck, [3, 4, 23, 3], 32, group_width)


_ROWS: tuple[tuple[str, Callable[[], nn.Module], int, int], ...] = (
    ("resnet18", partial(_torchvision_resnet, BasicBlock, [2, 2, 2, 2]), 512, 11_176_512),
    ("resnet50", partial(_torchvision_resnet, Bottleneck, [3, 4, 6, 3]), 2048, 23_508_032),
    # Every layer of ResNet-50 two, four, five times as wide.
    ("resnet50w2", _wide(2), 4096, 93_907_072),
    ("resnet50w4", _wide(4), 8192, 375_378_176),
    ("resnet50w5", _wide(5), 10240, 586_450_240),
    ("resnext101_32x4d", _resnext(4), 2048, 42_128_704),
    ("resnext101_32x8d", _resnext(8), 2048, 86_742_336),
    ("resnext101_32x16d", _resnext(16), 2048, 191_977_792),
    ("resnext101_32x32d", _resnext(32), 2048, 466_481_472),
    ("resnext101_32x48d", _resnext(48), 2048, 826_362_176),
    # Radosavovic et al. 2020, arXiv:2003.13678; 64 GF is a size that arXiv:2103.01988 added.
    ("regnet_y_400mf", partial(_regnet_y, 16, 48, 27.89, 2.09, 8), 440, 3_903_144),
    ("regnet_y_800mf", partial(_regnet_y, 14, 56, 38.84, 2.4, 16), 784, 5_647_512),
    ("regnet_y_1_6gf", partial(_regnet_y, 27, 48, 20.71, 2.65, 24), 888, 10_313_430),
    ("regnet_y_3_2gf", partial(_regnet_y, 21, 80, 42.63, 2.66, 24), 1512, 17_923_338),
    ("regnet_y_8gf", partial(_regnet_y, 17, 192, 76.82, 2.19, 56), 2016, 37_364_472),
    ("regnet_y_16gf", partial(_regnet_y, 18, 200, 106.23, 2.48, 112), 3024, 80_565_140),
    ("regnet_y_32gf", partial(_regnet_y, 20, 232, 115.89, 2.53, 232), 3712, 141_333_770),
    ("regnet_y_64gf", partial(_regnet_y, 20, 352, 147.48, 2.4, 328), 4920, 276_457_786),
    ("regnet_y_128gf", partial(_regnet_y, 27, 456, 160.83, 2.52, 264), 7392, 637_419_894),
    # For images of about 32 pixels. The stem with stride 2 costs a quarter of the one of resnet18-cifar.
    ("resnet8-w16", _small((1, 1, 1), 16, "4x4"), 64, 77_728),
    ("resnet8-w32", _small((1, 1, 1), 32, "4x4"), 128, 308_032),
    ("resnet8-w48", _small((1, 1, 1), 48, "4x4"), 192, 690_912),
    ("resnet8-w64", _small((1, 1, 1), 64, "4x4"), 256, 1_226_368),
    ("resnet8-w96", _small((1, 1, 1), 96, "4x4"), 384, 2_755_008),
    ("resnet8-w128", _small((1, 1, 1), 128, "4x4"), 512, 4_893_952),
    ("resnet14-w32", _small((2, 2, 2), 32, "4x4"), 128, 696_000),
    ("resnet14-w64", _small((2, 2, 2), 64, "4x4"), 256, 2_776_448),
    ("resnet18-cifar", _small((2, 2, 2, 2), 64, "3x3"), 512, 11_168_832),
)

_SMALL_STRIDES = {
    "resnet8": 8,  # stem 2, two stages that halve
    "resnet14": 8,
    "resnet18-cifar": 8,  # three stages that halve
}

BACKBONES: dict[str, Backbone] = {
    name: Backbone(
        build=build, width=width, parameters=parameters, stride=_SMALL_STRIDES.get(name.split("-w")[0], 32)
    )
    for name, build, width, parameters in _ROWS
}
"""Every encoder that `model.backbone` may name."""


def build_backbone(name: str, *, activation_checkpointing: bool = False) -> nn.Module:
    """Make an encoder with fresh weights from torch's default generator.

    Args:
        name: a key of BACKBONES.
        activation_checkpointing: compute the activations of each stage again in backward and do not keep
            them.

    Raises:
        ValueError: unknown name.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"model.backbone {name!r} is not known; {hint}Known are {', '.join(BACKBONES)}")
    net = BACKBONES[name].build()
    _guard_strides(net)
    if activation_checkpointing:
        trunk = net.trunk_output if isinstance(net, RegNet) else net
        for stage, module in list(trunk.named_children()):
            if isinstance(module, nn.Sequential):
                setattr(trunk, stage, _RecomputedStage(OrderedDict(module.named_children())))
    return net


class _RecomputedStage(nn.Sequential):
    """A stage whose activations are computed again in backward; children keep their names."""

    def forward(self, input: Tensor) -> Tensor:  # the name is torch's
        if not (self.training and torch.is_grad_enabled()):
            return self._all(input)
        y: Tensor = checkpoint(self._all, input, use_reentrant=False, context_fn=self._contexts)
        return y

    def _all(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """The second pass must not move the running statistics again."""
        return nullcontext(), without_tracking(self)
