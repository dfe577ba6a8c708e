"""What several tests of the network compare with: torchvision's SSD, and a count of operators."""

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from detection.network.anchors import ANCHOR_SCALES, ASPECT_RATIOS, default_boxes

GRIDS = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
ANCHORS = default_boxes(GRIDS, ANCHOR_SCALES["ssd"])
NUM_CLASSES = 5


def torchvision_ssd(side: int, **settings) -> SSD:
    """torchvision's SSD without a network, for its loss and post-processing. side: of its images, pixels."""
    generator = DefaultBoxGenerator([list(ratios) for ratios in ASPECT_RATIOS])
    return SSD(nn.Identity(), generator, (side, side), NUM_CLASSES + 1, head=nn.Identity(), **settings)


class OperatorCount(TorchDispatchMode):
    """Counts the operators that reach the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))
