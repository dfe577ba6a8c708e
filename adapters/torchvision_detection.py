"""A Swin with a feature pyramid as the backbone of torchvision's detectors (models.detection.RetinaNet, FasterRCNN).

Feature pyramid: Lin et al., arXiv 1612.03144. See examples/torchvision_detectors_with_swin.py.

    FasterRCNN(backbone("swin_t"), num_classes=91)
    RetinaNet(backbone("swin_t", stages=(2, 3, 4), extra_blocks=LastLevelP6P7(256, 256)), num_classes=91)

The maps of the stages are called "0", "1", ... from high to low resolution, as torchvision's detectors expect.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool

from adapters.stages import SwinStages, trunk_weights


class SwinFPN(nn.Module):
    """Stages of a Swin and torchvision's feature pyramid on them. out_channels: of every map."""

    def __init__(self, body: SwinStages, out_channels: int, extra_blocks: ExtraFPNBlock):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.out_channels, out_channels, extra_blocks)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """images: (B, 3, H, W) float, normalised. Returns the maps by name, (B, out_channels, H', W') each."""
        return self.fpn(OrderedDict((str(index), x) for index, x in enumerate(self.body(images))))


def backbone(
    name: str,
    weights: str | None = None,
    *,
    stages: tuple[int, ...] = (1, 2, 3, 4),
    out_channels: int = 256,
    extra_blocks: ExtraFPNBlock | None = None,
    drop_path_rate: float = 0.2,
) -> SwinFPN:
    """Make a backbone whose maps torchvision's detectors take.

    name: a key of SWIN_VARIANTS. weights: of the trunk, as `model.weights` of a detection config names them
    (imagenet1k, a name of the registry, a file, an experiment); None starts from random ones.
    stages, extra_blocks: as torchvision's resnet_fpn_backbone takes them; by default all four stages and "pool", for
    the five anchor sizes of FasterRCNN.
    Raises ValueError for an unknown name or stage, and for weights that are absent or do not fit.
    """
    body = SwinStages(name, stages, drop_path_rate)
    if weights is not None:
        body.load_trunk(trunk_weights(weights, name))
    return SwinFPN(body, out_channels, LastLevelMaxPool() if extra_blocks is None else extra_blocks)
