"""Code shared by several benchmarks: SSD300's anchors, and torchvision's SSD without a network."""

from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_convert

from detection.network.anchors import ANCHOR_SCALES, ASPECT_RATIOS, default_boxes

NUM_CLASSES, SIDE = 80, 300
GRIDS = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
CELLS_PER_LEVEL = tuple(rows * columns for rows, columns in GRIDS)
ANCHORS = default_boxes(GRIDS, ANCHOR_SCALES["ssd_coco"])  # 8,732
ANCHORS_XYXY = box_convert(ANCHORS, "cxcywh", "xyxy")


def torchvision_ssd(**settings) -> SSD:
    """Return torchvision's SSD without a network, for its loss and post-processing."""
    generator = DefaultBoxGenerator([list(ratios) for ratios in ASPECT_RATIOS])
    return SSD(nn.Identity(), generator, (SIDE, SIDE), NUM_CLASSES + 1, head=nn.Identity(), **settings)
