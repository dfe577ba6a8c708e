"""Necks: mix the backbone's maps over resolutions, and give all of them the same channels.

Every neck takes and returns a list of maps from high to low resolution, and keeps their sides, whatever these are.
`out_channels` has the channels of what it returns.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Resize x bilinearly to the height and width of the reference."""
    size = reference.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def make_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A padded convolution, Xavier-uniform with zero bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class NoNeck(nn.Module):
    """The maps as they are, with the backbone's channels."""

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.out_channels = list(in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return maps


class FPN(nn.Module):
    """Feature pyramid network (Lin et al., arXiv 1612.03144): a top-down path, resizing bilinearly."""

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

    A strided convolution leaves half the side, rounded up; where the next map is smaller than that (3 to 1), its
    result is resized.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__(in_channels, out_channels)
        self.downs = nn.ModuleList(make_conv(out_channels, out_channels, 3, stride=2) for _ in in_channels[1:])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = super().forward(maps)
        for level, down in enumerate(self.downs, start=1):
            maps[level] = maps[level] + resize_like(down(maps[level - 1]), maps[level])
        return maps


class DenseFPN(nn.Module):
    """Every level fuses its own map with all coarser fused maps, in one 3x3 convolution of their concatenation.

    The coarsest map is only aligned.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.out_channels = [out_channels] * len(in_channels)
        self.aligns = nn.ModuleList(make_conv(channels, out_channels, 1) for channels in in_channels)
        num_coarser = reversed(range(1, len(in_channels)))  # of each level but the coarsest
        self.fuses = nn.ModuleList(make_conv((i + 1) * out_channels, out_channels, 3) for i in num_coarser)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fused = [align(x) for align, x in zip(self.aligns, maps, strict=True)]
        for level in reversed(range(len(self.fuses))):
            own, coarser = fused[level], fused[level + 1 :]
            fused[level] = self.fuses[level](torch.cat([own, *(resize_like(x, own) for x in coarser)], dim=1))
        return fused


NECKS = {"none": NoNeck, "fpn": FPN, "pan": PAN, "dense_fpn": DenseFPN}


def build_neck(name: str, in_channels: Sequence[int], out_channels: int = 256) -> nn.Module:
    """Make a row of NECKS for maps of these channels, from high to low resolution."""
    return NECKS[name](in_channels, out_channels)
