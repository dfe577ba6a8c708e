"""Backbones of the detector: a trunk, the maps tapped from it, and extra levels that shrink to one cell.

A backbone is a row of BACKBONES, over a trunk that is a row of TRUNKS; rows A and B of one trunk differ in what
they tap. Any ResNet (He et al., arXiv 1512.03385) or Swin (arXiv 2103.14030) can be had by adding a row:

    BACKBONES["SwinSBackbone_B"] = dataclasses.replace(BACKBONES["SwinTBackbone_B"], trunk="swin_s")

The extra levels follow SSD (arXiv 1512.02325, section 2.1). Their weights do not depend on the input size, their
strides and paddings do (`plan_extras`), so a checkpoint works at any square input of 96 pixels or more.

Swin sides are those of Microsoft's code, which pads odd sides before merging: 21 merges to 11.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from engine.loading import load_exactly
from model import (
    SWIN_VARIANTS,
    ChannelLayerNorm,
    PatchExpanding,
    SwinTransformer,
    eager_cache,
    load_swin_weights,
)

MIN_INPUT_SIZE = 96

# ---------------------------------------------------------------------------------------------------- trunks


class ResNetTrunk(nn.Module):
    """The part of a ResNet v1.5 that the taps need, with torchvision's parameter names.

    block: torchvision's BasicBlock or Bottleneck. depths: blocks per layer. taps: among "layer1".."layer4".
    width: channels of the stem and of layer1's 3x3 convolutions; doubles from layer to layer.
    unstrided: layers that keep the resolution of the layer before them.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        *,
        taps: tuple[str, ...],
        width: int = 64,
        unstrided: tuple[str, ...] = (),
    ):
        super().__init__()
        names = [f"layer{number}" for number in range(1, len(depths) + 1)]
        unknown = [name for name in (*taps, *unstrided) if name not in names]
        if unknown:
            raise ValueError(f"layer {unknown[0]!r}: expected one of {', '.join(names)}")
        last = max(names.index(tap) for tap in taps)
        self.cut_away = ("fc.", *(f"{name}." for name in names[last + 1 :]))  # as in SwinTransformer

        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self._out_channels = {}
        in_channels = width
        for index, name in enumerate(names[: last + 1]):
            stride = 1 if index == 0 or name in unstrided else 2
            layer = make_resnet_layer(block, in_channels, width * 2**index, depths[index], stride)
            self.add_module(name, layer)
            in_channels = self._out_channels[name] = width * 2**index * block.expansion

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def out_channels(self, tap: str) -> int:
        """Channels of the map at a tap."""
        return self._out_channels[tap]

    def features(self, images: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        """images: (B, 3, H, W) float. Returns a (B, C, H', W') map for each tap."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = {}
        for name in self._out_channels:
            x = self.get_submodule(name)(x)
            if name in taps:
                maps[name] = x
        return {tap: maps[tap] for tap in taps}


def make_resnet_layer(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """Blocks of one ResNet layer; the first one changes resolution and channels, on its shortcut too."""
    out_channels = width * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    rest = [block(out_channels, width) for _ in range(depth - 1)]
    return nn.Sequential(block(in_channels, width, stride, shortcut), *rest)


# name -> kind, and the arguments of its class
TRUNKS = {
    "resnet18": ("resnet", {"block": BasicBlock, "depths": (2, 2, 2, 2)}),
    "resnet18_slim": ("resnet", {"block": BasicBlock, "depths": (2, 2, 2, 2), "width": 32}),
    "resnet34": ("resnet", {"block": BasicBlock, "depths": (3, 4, 6, 3)}),
    "resnet50": ("resnet", {"block": Bottleneck, "depths": (3, 4, 6, 3)}),
    "resnet101": ("resnet", {"block": Bottleneck, "depths": (3, 4, 23, 3)}),
    "resnet152": ("resnet", {"block": Bottleneck, "depths": (3, 8, 36, 3)}),
    **{name: ("swin", sizes) for name, sizes in SWIN_VARIANTS.items()},
}

# ------------------------------------------------------------------------- what may happen to the first map


class L2Norm(nn.Module):
    """Scale every position to unit length over the channels, times a learned factor per channel, at first 20.

    Early maps have much larger values than late ones (Liu et al., ParseNet, arXiv 1506.04579, section 3.3).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = channels
        self.scale = nn.Parameter(torch.full((channels,), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.scale[:, None, None]


# ---------------------------------------------------------------------------------------------- extra levels


class Convolution(NamedTuple):
    """Stride and padding of a 3x3 convolution."""

    stride: int
    padding: int

    def out_side(self, side: int) -> int:
        return (side + 2 * self.padding - 3) // self.stride + 1


HALVE = Convolution(stride=2, padding=1)
HALVE_INSIDE = Convolution(stride=2, padding=0)
VALID = Convolution(stride=1, padding=0)
KEEP = Convolution(stride=1, padding=1)


@eager_cache
def plan_extras(side: int, steps: tuple[Convolution, ...]) -> tuple[tuple[Convolution, ...], int]:
    """Choose stride and padding of every extra level so that the last map has side 1.

    side: of the map before the extra levels. steps: those of the row, for the reference input size.
    Each level may take, in this order of preference: its own step, stride 2 with padding, stride 2 without, stride 1
    without. The first plan that ends at the smallest side (1, unless the input is huge) is taken, which changes late
    levels rather than early ones. Once a map has side 1, the following keep it. Returns the plan and its last side."""
    if side == 1 or not steps:
        return (KEEP,) * len(steps), side
    best, smallest = (), side
    for step in dict.fromkeys((steps[0], HALVE, HALVE_INSIDE, VALID)):
        if step.out_side(side) < 1:
            continue  # without padding a 3x3 convolution needs 3 cells
        rest, last = plan_extras(step.out_side(side), steps[1:])
        if last < smallest:
            best, smallest = (step, *rest), last
        if smallest == 1:
            break
    return best, smallest


class ExtraLevel(nn.Module):
    """1x1 and 3x3 convolution, each with norm and ReLU; stride and padding are arguments of `forward`."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, norm: type[nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid_channels, kernel_size=1, bias=False)
        self.norm1 = norm(mid_channels)
        self.conv2 = nn.Conv2d(mid_channels, out_channels, kernel_size=3, bias=False)
        self.norm2 = norm(out_channels)
        for conv in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(conv.weight)

    def forward(self, x: Tensor, step: Convolution) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.conv2d(x, self.conv2.weight, stride=step.stride, padding=step.padding)
        return F.relu(self.norm2(x))


# ------------------------------------------------------------------------------------------------- backbones


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone: where its maps come from, from high to low resolution."""

    trunk: str  # a key of TRUNKS
    input_size: int  # reference side of the input in pixels
    taps: tuple[str, ...]  # maps of the trunk
    extras: tuple[tuple[int, int], ...]  # levels after the last tap: channels after the 1x1 and the 3x3 convolution
    steps: tuple[Convolution, ...]  # of these levels at the reference size
    norm: type[nn.Module] = nn.BatchNorm2d  # of these levels, made from a number of channels
    first: type[L2Norm] | type[PatchExpanding] | None = None  # for the first map alone, made from its channels
    unstrided: tuple[str, ...] = ()  # layers of a ResNet that keep the resolution of the layer before them


BACKBONES = {
    "ResNet50Backbone_A": BackboneSpec(
        trunk="resnet50",
        input_size=300,
        taps=("layer2", "layer3", "layer4"),
        first=L2Norm,
        extras=((256, 512), (128, 256), (128, 256)),
        steps=(HALVE, HALVE, VALID),
    ),
    "ResNet50Backbone_B": BackboneSpec(
        trunk="resnet50",
        input_size=300,
        taps=("layer3",),
        unstrided=("layer3",),
        extras=((256, 512), (256, 512), (128, 256), (128, 256), (128, 256)),
        steps=(HALVE, HALVE, HALVE, VALID, VALID),
    ),
    "SwinTBackbone_A": BackboneSpec(
        trunk="swin_t",
        input_size=336,
        taps=("merge1", "merge2", "merge3"),
        extras=((512, 512), (256, 256), (128, 256)),
        steps=(HALVE, HALVE, VALID),
    ),
    "SwinTBackbone_B": BackboneSpec(
        trunk="swin_t",
        input_size=336,
        taps=("stage3",),
        first=PatchExpanding,
        norm=ChannelLayerNorm,
        extras=((512, 512), (256, 512), (256, 256), (128, 256), (128, 256)),
        steps=(HALVE, HALVE, HALVE, HALVE, VALID),
    ),
    # Half the widths of the rows above: for the demo, and for small data on a CPU.
    "ResNet18SlimBackbone_A": BackboneSpec(
        trunk="resnet18_slim",
        input_size=128,
        taps=("layer2", "layer3", "layer4"),
        first=L2Norm,
        extras=((128, 256), (64, 128), (64, 128)),
        steps=(HALVE, HALVE, VALID),
    ),
    "ResNet18SlimBackbone_B": BackboneSpec(
        trunk="resnet18_slim",
        input_size=128,
        taps=("layer3",),
        unstrided=("layer3",),
        extras=((128, 256), (128, 256), (64, 128), (64, 128), (64, 128)),
        steps=(HALVE, HALVE, HALVE, HALVE, VALID),
    ),
    "SwinSlimBackbone_B": BackboneSpec(
        trunk="swin_slim",
        input_size=128,
        taps=("stage3",),
        first=PatchExpanding,
        norm=ChannelLayerNorm,
        extras=((256, 256), (128, 256), (128, 128), (64, 128), (64, 128)),
        steps=(HALVE, HALVE, HALVE, HALVE, VALID),
    ),
}


class Backbone(nn.Module):
    """Trunk, taps and extra levels of a BackboneSpec.

    out_channels: channels of each map. drop_path_rate: of a Swin trunk; a ResNet has no stochastic depth.
    """

    def __init__(self, spec: BackboneSpec, drop_path_rate: float):
        super().__init__()
        kind, sizes = TRUNKS[spec.trunk]
        if kind == "resnet":
            self.trunk = ResNetTrunk(**sizes, taps=spec.taps, unstrided=spec.unstrided)
        else:
            assert not spec.unstrided, "unstrided is for the layers of a ResNet"
            self.trunk = SwinTransformer(**sizes, drop_path_rate=drop_path_rate).cut(spec.taps)
        self.taps = spec.taps
        self.out_channels = [self.trunk.out_channels(tap) for tap in spec.taps]

        self.first = None
        if spec.first is not None:
            self.first = spec.first(self.out_channels[0])
            self.out_channels[0] = self.first.out_channels

        self.steps = spec.steps
        self.extras = nn.ModuleList()
        for mid_channels, out_channels in spec.extras:
            self.extras.append(ExtraLevel(self.out_channels[-1], mid_channels, out_channels, spec.norm))
            self.out_channels.append(out_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, S, S) float, normalised, S of any value from 96 up.

        Returns the maps, (B, C, side, side), from high to low resolution. Raises ValueError for any other image size.
        """
        height, width = images.shape[-2:]
        if height != width or height < MIN_INPUT_SIZE:
            raise ValueError(
                f"images of {width}x{height} pixels: expected square ones of {MIN_INPUT_SIZE} pixels or more"
            )
        maps = list(self.trunk.features(images, self.taps).values())
        if self.first is not None:
            maps[0] = self.first(maps[0])
        plan, _ = plan_extras(maps[-1].shape[-1], self.steps)
        for level, step in zip(self.extras, plan, strict=True):
            maps.append(level(maps[-1], step))
        return maps


def build_backbone(name: str, drop_path_rate: float = 0.2) -> Backbone:
    """Make a row of BACKBONES, with random weights."""
    return Backbone(BACKBONES[name], drop_path_rate)


def load_backbone_weights(backbone: Backbone, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Load a public classification checkpoint into the trunk, whole or not at all.

    state_dict: a ResNet's under torchvision's names, or a Swin's as `load_swin_weights` takes it. Only the layers
    behind the last tap and the classifier may be left over. Returns what was resized in a Swin with different windows:
    its name and both shapes. Raises ValueError, and leaves the trunk untouched, if anything else does not fit."""
    if isinstance(backbone.trunk, SwinTransformer):
        resized, _ = load_swin_weights(backbone.trunk, state_dict)
        return resized
    load_exactly(backbone.trunk, state_dict, may_be_left_over=backbone.trunk.cut_away)
    return []
