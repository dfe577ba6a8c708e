"""Necks: fuse feature maps of different resolutions and project them to a common number of channels.

Every neck takes a list of maps, from high to low resolution, and returns a list of maps with the same heights and
widths. The attribute `out_channels` lists the number of channels of each returned map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Resize x (B, C, H, W) bilinearly to the height and width of `reference`."""
    size = reference.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def make_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Create a padded convolution with Xavier-uniform weights and zero bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
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


NECKS = {"none": NoNeck, "fpn": FPN, "pan": PAN, "dense_fpn": DenseFPN}


def build_neck(name: str, in_channels: Sequence[int], out_channels: int = 256) -> nn.Module:
    """Build the neck `name` of NECKS.

    in_channels: channels of each input map, high to low resolution. out_channels: channels of every output map."""
    return NECKS[name](in_channels, out_channels)
