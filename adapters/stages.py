"""The maps of a Swin's stages as a pyramid, which is what dense predictors elsewhere are built on."""

from collections.abc import Mapping

from torch import Tensor, nn

from engine.logbook import logger
from engine.text import listed
from model import SWIN_VARIANTS, ChannelLayerNorm, SwinTransformer, load_swin_weights
from weights.registry import find_weights, read_weights


def trunk_weights(named: str, trunk: str) -> dict[str, Tensor]:
    """What a detection config's `model.weights` would name: imagenet1k, a name of the registry, a file, an experiment.

    Raises ValueError if it is not on this machine, with the way to get it. Downloads nothing."""
    try:
        return read_weights(find_weights(named, trunk))
    except ValueError as error:
        raise ValueError(f"weights {named!r} of {trunk}: {error}") from error


class SwinStages(nn.Module):
    """A Swin trunk whose chosen stages each end in a LayerNorm over the channels.

    Blocks normalise what they read and not what they add up, so that sums grow from block to block. A classifier has
    a norm behind the last; Microsoft's code for detection and segmentation puts a new one on every map, and so do we.
    The new norms are no part of a classifier's checkpoint and start as plain normalisations.

    name: a key of SWIN_VARIANTS. stages: among 1, 2, 3 and 4, with strides of 4, 8, 16 and 32 pixels.
    out_channels: channels of each map. Raises ValueError for an unknown name or stage.
    """

    def __init__(self, name: str, stages: tuple[int, ...], drop_path_rate: float = 0.2):
        super().__init__()
        if name not in SWIN_VARIANTS:
            raise ValueError(f"Swin {name!r}: expected one of {', '.join(SWIN_VARIANTS)}")
        self.taps = tuple(f"stage{stage}" for stage in stages)
        self.trunk = SwinTransformer(**SWIN_VARIANTS[name], drop_path_rate=drop_path_rate).cut(self.taps)
        self.out_channels = [self.trunk.out_channels(tap) for tap in self.taps]
        self.norms = nn.ModuleList(ChannelLayerNorm(channels) for channels in self.out_channels)

    def load_trunk(self, weights: Mapping[str, Tensor]) -> None:
        """Load a classifier's weights, as `load_swin_weights` does. Raises ValueError if they do not fit."""
        resized, _ = load_swin_weights(self.trunk, weights)
        if resized:
            logger.warning("weights of other windows or images, %d tables resized: %s", len(resized), listed(resized))

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) float, normalised, of any size. Returns a (B, C, H / stride, W / stride) map per stage.

        Sides are rounded up."""
        maps = self.trunk.features(images, self.taps)
        return [norm(x) for norm, x in zip(self.norms, maps.values(), strict=True)]
