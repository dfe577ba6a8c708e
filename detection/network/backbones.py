"""Backbones of the detector.

A trunk is a classification network without its classifier: ResNet (arXiv 1512.03385), Swin (arXiv 2103.14030) or a
model of timm. A backbone uses some feature maps of a trunk, named by taps such as "layer3". It adds extra levels,
convolutions that reduce the last map to one cell (SSD, arXiv 1512.02325, section 2.1).

BACKBONES lists the backbones; TRUNKS lists the trunks. Backbones A, B and C of the same trunk differ in their taps. C
has the maps of a standard feature pyramid, of stride 8, 16 and 32. "timm/NAME" is backbone C with the model NAME of
timm as its trunk. To use a different ResNet or Swin, add an entry:

    BACKBONES["SwinSBackbone_B"] = dataclasses.replace(BACKBONES["SwinTBackbone_B"], trunk="swin_s")

The class of a trunk has the methods `features` and `out_channels`. `stem_prefixes` lists the name prefixes of its
parameters before the first stage, `removed_prefixes` those of the classifier's parameters that the trunk lacks.

A checkpoint works for square inputs of any size from 96 pixels, except that some models of timm accept only certain
sizes. The size changes only the strides and paddings of the extra levels (`plan_extras`), not their weights.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from detection.network.timm_trunk import TAPS as TIMM_TAPS
from detection.network.timm_trunk import TimmTrunk
from engine.loading import load_exactly
from model import (
    SWIN_VARIANTS,
    ChannelLayerNorm,
    PatchExpanding,
    SwinTransformer,
    eager_cache,
    load_swin_weights,
)
from weights.timm_weights import PREFIX

MIN_INPUT_SIZE = 96
Freeze = Literal["none", "stem", "trunk"]  # part of the trunk that is not trained

# ---------------------------------------------------------------------------------------------------- trunks


class ResNetTrunk(nn.Module):
    """A ResNet v1.5 that ends with the last tapped layer. Parameters have torchvision's names.

    block: torchvision's BasicBlock or Bottleneck. depths: number of blocks in each layer.
    taps: layers whose outputs are used, from "layer1" to "layer4". unstrided: layers with stride 1 instead of 2.
    width: channels of the stem and of the 3x3 convolutions in layer1. The width doubles with every later layer."""

    stem_prefixes = ("conv1.", "bn1.")

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
        self.removed_prefixes = ("fc.", *(f"{name}." for name in names[last + 1 :]))  # parts that the trunk lacks

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
        """Return the number of channels of the feature map at a tap."""
        return self._out_channels[tap]

    def features(self, images: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        """Return a dict from tap to feature map (B, C, H', W'). images: (B, 3, H, W) float."""
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
    """Create the blocks of one ResNet layer. The first block applies the stride and changes the number of channels."""
    out_channels = width * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    rest = [block(out_channels, width) for _ in range(depth - 1)]
    return nn.Sequential(block(in_channels, width, stride, shortcut), *rest)


# name -> (kind, arguments of the trunk's class)
TRUNKS = {
    "resnet18": ("resnet", {"block": BasicBlock, "depths": (2, 2, 2, 2)}),
    "resnet18_slim": ("resnet", {"block": BasicBlock, "depths": (2, 2, 2, 2), "width": 32}),
    "resnet34": ("resnet", {"block": BasicBlock, "depths": (3, 4, 6, 3)}),
    "resnet50": ("resnet", {"block": Bottleneck, "depths": (3, 4, 6, 3)}),
    "resnet101": ("resnet", {"block": Bottleneck, "depths": (3, 4, 23, 3)}),
    "resnet152": ("resnet", {"block": Bottleneck, "depths": (3, 8, 36, 3)}),
    **{name: ("swin", sizes) for name, sizes in SWIN_VARIANTS.items()},
}

# ------------------------------------------------------------------------------- normalization of the first map


class L2Norm(nn.Module):
    """Normalize each position to unit L2 norm over the channels, then scale each channel by a learned factor.

    Maps of early layers have much larger values than maps of late layers (ParseNet, arXiv 1506.04579, section 3.3)."""

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
        """Return the side of the output for an input of this side."""
        return (side + 2 * self.padding - 3) // self.stride + 1


HALVE = Convolution(stride=2, padding=1)
HALVE_UNPADDED = Convolution(stride=2, padding=0)
VALID = Convolution(stride=1, padding=0)
SAME = Convolution(stride=1, padding=1)


@eager_cache
def plan_extras(side: int, steps: tuple[Convolution, ...]) -> tuple[tuple[Convolution, ...], int]:
    """Choose the stride and padding of every extra level so that the last map has side 1.

    side: side of the last tapped map. steps: stride and padding of each level at the reference input size.
    Each level tries its own step, then HALVE, HALVE_UNPADDED and VALID. After a map of side 1, a level uses SAME.
    The first plan with the smallest last side is chosen. This side is 1, unless the input is huge. Steps of late
    levels are changed before steps of early levels. Returns the steps of all levels, and the side of the last map."""
    if side == 1 or not steps:
        return (SAME,) * len(steps), side
    best, smallest = (), side
    for step in dict.fromkeys((steps[0], HALVE, HALVE_UNPADDED, VALID)):
        if step.out_side(side) < 1:
            continue  # an unpadded 3x3 convolution needs at least 3 cells
        rest, last = plan_extras(step.out_side(side), steps[1:])
        if last < smallest:
            best, smallest = (step, *rest), last
        if smallest == 1:
            break
    return best, smallest


class ExtraLevel(nn.Module):
    """A 1x1 and a 3x3 convolution, each followed by norm and ReLU.

    `forward` takes the stride and padding of the 3x3 convolution, because they depend on the input size."""

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
    """Description of one backbone. Levels are listed from high to low resolution."""

    trunk: str  # a key of TRUNKS, or "timm/NAME"
    input_size: int  # reference side of the input in pixels
    taps: tuple[str, ...]  # names of the trunk's feature maps that are used
    extras: tuple[tuple[int, int], ...]  # per extra level: output channels of the 1x1 and of the 3x3 convolution
    steps: tuple[Convolution, ...]  # per extra level: stride and padding at the reference input size
    norm: type[nn.Module] = nn.BatchNorm2d  # norm layer of the extra levels; argument: number of channels
    tap_norm: type[nn.Module] | None = None  # norm layer of each tapped map; argument: number of channels
    first: type[L2Norm] | type[PatchExpanding] | None = None  # module for the first map; argument: its channels
    unstrided: tuple[str, ...] = ()  # ResNet layers with stride 1 instead of 2


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
    "ResNet50Backbone_C": BackboneSpec(
        trunk="resnet50",
        input_size=320,
        taps=("layer2", "layer3", "layer4"),
        tap_norm=ChannelLayerNorm,
        norm=ChannelLayerNorm,
        extras=((256, 512), (128, 256), (128, 256)),
        steps=(HALVE, HALVE, HALVE_UNPADDED),
    ),
    "SwinTBackbone_C": BackboneSpec(
        trunk="swin_t",
        input_size=320,
        taps=("stage2", "stage3", "stage4"),
        tap_norm=ChannelLayerNorm,
        norm=ChannelLayerNorm,
        extras=((256, 512), (128, 256), (128, 256)),
        steps=(HALVE, HALVE, HALVE_UNPADDED),
    ),
    # Slim backbones for the demo, and for training with small data sets on a CPU.
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
    "ResNet18SlimBackbone_C": BackboneSpec(
        trunk="resnet18_slim",
        input_size=128,
        taps=("layer2", "layer3", "layer4"),
        tap_norm=ChannelLayerNorm,
        norm=ChannelLayerNorm,
        extras=((128, 256), (64, 128), (64, 128)),
        steps=(HALVE, HALVE, HALVE_UNPADDED),
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


def backbone_spec(name: str) -> BackboneSpec:
    """Return the description of a backbone: an entry of BACKBONES, or "timm/NAME"."""
    if name.startswith(PREFIX):
        return dataclasses.replace(BACKBONES["ResNet50Backbone_C"], trunk=name, taps=TIMM_TAPS)
    return BACKBONES[name]


def build_trunk(
    spec: BackboneSpec, drop_path_rate: float, input_size: int
) -> ResNetTrunk | SwinTransformer | TimmTrunk:
    """Build the trunk of a backbone, with random weights."""
    if spec.trunk.startswith(PREFIX):
        return TimmTrunk(spec.trunk.removeprefix(PREFIX), input_size, drop_path_rate)
    kind, sizes = TRUNKS[spec.trunk]
    if kind == "resnet":
        return ResNetTrunk(**sizes, taps=spec.taps, unstrided=spec.unstrided)
    assert not spec.unstrided, "unstrided is only for ResNet trunks"
    return SwinTransformer(**sizes, drop_path_rate=drop_path_rate).cut(spec.taps)


class Backbone(nn.Module):
    """The backbone that a BackboneSpec describes, with random weights.

    The attribute `out_channels` lists the number of channels of each map.
    drop_path_rate: stochastic depth rate of the last block of a trunk with LayerNorm; ignored by other trunks.
    freeze: part of the trunk that is not trained. It stays in evaluation mode, so that its running statistics do not
    change and it has no stochastic depth.
    input_size: side of the images in pixels. Only some models of timm depend on it."""

    def __init__(self, spec: BackboneSpec, drop_path_rate: float, freeze: Freeze, input_size: int):
        super().__init__()
        self.trunk = build_trunk(spec, drop_path_rate, input_size)
        self.taps = spec.taps
        self.out_channels = [self.trunk.out_channels(tap) for tap in spec.taps]

        self.tap_norms = None
        if spec.tap_norm is not None:
            self.tap_norms = nn.ModuleList(spec.tap_norm(channels) for channels in self.out_channels)
        self.first = None
        if spec.first is not None:
            self.first = spec.first(self.out_channels[0])
            self.out_channels[0] = self.first.out_channels

        self.steps = spec.steps
        self.extras = nn.ModuleList()
        for mid_channels, out_channels in spec.extras:
            self.extras.append(ExtraLevel(self.out_channels[-1], mid_channels, out_channels, spec.norm))
            self.out_channels.append(out_channels)

        self.frozen_prefixes: tuple[str, ...] = ()
        if freeze != "none":
            self.frozen_prefixes = self.trunk.stem_prefixes if freeze == "stem" else ("",)
        for name, parameter in self.trunk.named_parameters():
            if name.startswith(self.frozen_prefixes):
                parameter.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; the frozen part stays in evaluation mode."""
        super().train(mode)
        for name, module in self.trunk.named_modules():
            if f"{name}.".startswith(self.frozen_prefixes):
                module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, (B, C, side, side) each, from high to low resolution.

        images: (B, 3, S, S) float, normalised. Raises ValueError if they are not square or S < MIN_INPUT_SIZE."""
        height, width = images.shape[-2:]
        if height != width or height < MIN_INPUT_SIZE:
            raise ValueError(
                f"images of {width}x{height} pixels: expected square images of at least {MIN_INPUT_SIZE} pixels"
            )
        maps = list(self.trunk.features(images, self.taps).values())
        if self.tap_norms is not None:
            maps = [norm(x) for norm, x in zip(self.tap_norms, maps, strict=True)]
        if self.first is not None:
            maps[0] = self.first(maps[0])
        plan, _ = plan_extras(maps[-1].shape[-1], self.steps)
        for level, step in zip(self.extras, plan, strict=True):
            maps.append(level(maps[-1], step))
        return maps


def build_backbone(
    name: str, drop_path_rate: float = 0.2, freeze: Freeze = "none", input_size: int | None = None
) -> Backbone:
    """Build the backbone `name`, an entry of BACKBONES or "timm/NAME", with random weights.

    input_size: side of the images in pixels; None: the backbone's reference size."""
    spec = backbone_spec(name)
    return Backbone(spec, drop_path_rate, freeze, input_size or spec.input_size)


def load_backbone_weights(backbone: Backbone, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Load the weights of a public classifier into the trunk. Ignore its head and all layers after the last tap.

    state_dict: weights of a ResNet with torchvision's names, of a Swin in a format that `load_swin_weights` accepts, or
    of a model of timm (see `TimmTrunk.load_weights`).
    Returns one text (name, old shape, new shape) for each position table of a Swin that had to be resized.
    Raises ValueError if the weights do not fit the trunk, which then stays unchanged."""
    if isinstance(backbone.trunk, TimmTrunk):
        backbone.trunk.load_weights(state_dict)
        return []
    if isinstance(backbone.trunk, SwinTransformer):
        resized, _ = load_swin_weights(backbone.trunk, state_dict)
        return resized
    load_exactly(backbone.trunk, state_dict, ignored_prefixes=backbone.trunk.removed_prefixes)
    return []
