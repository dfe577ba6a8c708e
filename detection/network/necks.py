"""Necks: fuse feature maps of different resolutions and project them to a common number of channels.

Every neck takes a list of maps, from high to low resolution, and returns a list of maps with the same heights and
widths. The attribute `out_channels` lists the number of channels of each returned map.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Resize x (B, C, H, W) bilinearly to the height and width of `reference`."""
    size = reference.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def pool_like(x: Tensor, reference: Tensor) -> Tensor:
    """Halve the sides of x (B, C, H, W), rounded up, by max pooling; then resize x like `reference`.

    The resizing matters if the next map is smaller than half (for example, side 1 after side 3)."""
    return resize_like(F.max_pool2d(x, kernel_size=3, stride=2, padding=1), reference)


def make_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Create a padded convolution with Xavier-uniform weights and, if `bias`, zero bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=bias)
    nn.init.xavier_uniform_(conv.weight)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv


def make_depthwise_conv(channels: int) -> nn.Conv2d:
    """Create a padded depthwise 3x3 convolution with Xavier-uniform weights, without bias."""
    conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
    bound = math.sqrt(6 / (9 + 9))  # fan_in and fan_out of one channel; xavier_uniform_ ignores groups in fan_out
    nn.init.uniform_(conv.weight, -bound, bound)
    return conv


class NoNeck(nn.Module):
    """Return the backbone's maps unchanged. The argument out_channels is ignored."""

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.out_channels = list(in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return maps


class FPN(nn.Module):
    """Feature pyramid network (Lin et al., arXiv 1612.03144): a top-down path with bilinear resizing."""

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.out_channels = [out_channels] * len(in_channels)
        self.laterals = nn.ModuleList(make_conv(channels, out_channels, 1) for channels in in_channels)
        self.smooths = nn.ModuleList(make_conv(out_channels, out_channels, 3) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            merged[level] = merged[level] + resize_like(merged[level + 1], merged[level])
        return [smooth(x) for smooth, x in zip(self.smooths, merged, strict=True)]


class PAN(FPN):
    """Path aggregation network (Liu et al., arXiv 1803.01534, section 3.1): FPN, then a bottom-up path.

    The output of a strided convolution has half the side of its input, rounded up. If the next map is smaller (for
    example, side 1 after side 3), the output is resized to the size of the next map."""

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__(in_channels, out_channels)
        self.downs = nn.ModuleList(make_conv(out_channels, out_channels, 3, stride=2) for _ in in_channels[1:])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = super().forward(maps)
        for level, down in enumerate(self.downs, start=1):
            maps[level] = maps[level] + resize_like(down(maps[level - 1]), maps[level])
        return maps


class DenseFPN(nn.Module):
    """Fuse each map with all coarser fused maps, by concatenation and one 3x3 convolution.

    Before this, a 1x1 convolution is applied to every map. The coarsest map is not changed further."""

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.out_channels = [out_channels] * len(in_channels)
        self.aligns = nn.ModuleList(make_conv(channels, out_channels, 1) for channels in in_channels)
        num_coarser = reversed(range(1, len(in_channels)))  # number of coarser maps, for all levels but the last
        self.fuses = nn.ModuleList(make_conv((i + 1) * out_channels, out_channels, 3) for i in num_coarser)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fused = [align(x) for align, x in zip(self.aligns, maps, strict=True)]
        for level in reversed(range(len(self.fuses))):
            own, coarser = fused[level], fused[level + 1 :]
            fused[level] = self.fuses[level](torch.cat([own, *(resize_like(x, own) for x in coarser)], dim=1))
        return fused


class BiFPN(nn.Module):
    """Bidirectional feature pyramid network (EfficientDet, arXiv 1911.09070, section 3).

    A 1x1 convolution and BatchNorm are applied to every map. Then `repeats` layers follow. Each layer has a top-down
    and a bottom-up path. The convolutions have no bias, because BatchNorm follows."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, repeats: int):
        super().__init__()
        self.out_channels = [out_channels] * len(in_channels)
        self.laterals = nn.ModuleList(
            nn.Sequential(make_conv(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
            for channels in in_channels
        )
        self.layers = nn.Sequential(*(BiFPNLayer(len(in_channels), out_channels) for _ in range(repeats)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return self.layers([lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)])


class BiFPNLayer(nn.Module):
    """One top-down and one bottom-up path (EfficientDet, arXiv 1911.09070, figure 2 d).

    The coarsest map has no top-down node. The top-down node of the finest map is already its output."""

    def __init__(self, num_maps: int, channels: int):
        super().__init__()
        self.top_down = nn.ModuleList(FusionNode(2, channels) for _ in range(num_maps - 1))
        self.bottom_up = nn.ModuleList(FusionNode(3, channels) for _ in range(num_maps - 2))
        self.coarsest = FusionNode(2, channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        top_down = list(maps)
        for level in reversed(range(len(maps) - 1)):
            coarser = resize_like(top_down[level + 1], maps[level])
            top_down[level] = self.top_down[level](maps[level], coarser)
        outputs = [top_down[0]]
        for level, node in enumerate(self.bottom_up, start=1):
            outputs.append(node(maps[level], top_down[level], pool_like(outputs[-1], maps[level])))
        outputs.append(self.coarsest(maps[-1], pool_like(outputs[-1], maps[-1])))
        return outputs


class FusionNode(nn.Module):
    """Fuse maps of the same shape by a weighted mean, then apply SiLU, a separable 3x3 convolution and BatchNorm.

    The mean is the fast normalised fusion of EfficientDet (arXiv 1911.09070, section 3.3), with one learned weight per
    map. Negative weights count as 0. If no weight is positive, the mean is 0."""

    def __init__(self, num_maps: int, channels: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_maps))  # one-dimensional, so the optimizer does not decay them
        self.depthwise = make_depthwise_conv(channels)
        self.pointwise = make_conv(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, *maps: Tensor) -> Tensor:
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        fused = weights[0] * maps[0]
        for weight, x in zip(weights[1:], maps[1:], strict=True):
            fused = fused + weight * x
        return self.norm(self.pointwise(self.depthwise(F.silu(fused))))


NECKS = {"none": NoNeck, "fpn": FPN, "pan": PAN, "dense_fpn": DenseFPN, "bifpn": BiFPN}


def build_neck(name: str, in_channels: Sequence[int], out_channels: int = 256, repeats: int = 3) -> nn.Module:
    """Build the neck `name` of NECKS.

    in_channels: channels of each input map, high to low resolution. out_channels: channels of every output map.
    repeats: number of layers of a BiFPN; ignored by the other necks."""
    if NECKS[name] is BiFPN:
        return BiFPN(in_channels, out_channels, repeats)
    return NECKS[name](in_channels, out_channels)
