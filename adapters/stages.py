"""Feature maps of Swin stages, for detection and segmentation models of other libraries (docs/extending.md)."""

from torch import Tensor, nn

from engine.logbook import logger
from engine.text import listed
from model import SWIN_VARIANTS, ChannelLayerNorm, SwinTransformer, load_swin_weights
from weights.registry import find_weights, read_weights


class SwinStages(nn.Module):
    """A Swin trunk with a LayerNorm over the channels of each chosen stage's output.

    The norms are needed because the residual sums of Swin's blocks are not normalised and grow with depth. Microsoft's
    detection and segmentation code has the same norms. A classifier's checkpoint has no weights for them.

    name: a key of SWIN_VARIANTS. stages: numbers from 1 to 4. Stages 1, 2, 3, 4 have strides of 4, 8, 16, 32 pixels.
    weights: weights of the trunk, as in `model.weights` of a detection config, or None for random weights. Weights
        that are not on disk are not downloaded.
    The attribute `out_channels` lists the number of channels of each map.
    Raises ValueError for an unknown name or stage, and for weights that are missing or do not fit."""

    def __init__(
        self,
        name: str,
        stages: tuple[int, ...] = (1, 2, 3, 4),
        weights: str | None = None,
        drop_path_rate: float = 0.2,
    ):
        super().__init__()
        if name not in SWIN_VARIANTS:
            raise ValueError(f"Swin {name!r}: expected one of {', '.join(SWIN_VARIANTS)}")
        self.taps = tuple(f"stage{stage}" for stage in stages)
        self.trunk = SwinTransformer(**SWIN_VARIANTS[name], drop_path_rate=drop_path_rate).cut(self.taps)
        self.out_channels = [self.trunk.out_channels(tap) for tap in self.taps]
        self.norms = nn.ModuleList(ChannelLayerNorm(channels) for channels in self.out_channels)
        if weights is not None:
            self._load(name, weights)

    def _load(self, name: str, weights: str) -> None:
        try:
            resized, _ = load_swin_weights(self.trunk, read_weights(find_weights(weights, name).path))
        except ValueError as error:
            raise ValueError(f"cannot load weights {weights!r} into {name}: {error}") from error
        if resized:
            logger.warning("resized %d position tables of %s to this model: %s", len(resized), weights, listed(resized))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return a dict from "0", "1", ... to the map of each stage, the format that torchvision's detectors expect.

        images: (B, 3, H, W) float, normalised, of any size. Maps: (B, C, H / stride, W / stride), sides rounded up."""
        maps = self.trunk.features(images, self.taps).values()
        return {str(index): norm(x) for index, (norm, x) in enumerate(zip(self.norms, maps, strict=True))}
