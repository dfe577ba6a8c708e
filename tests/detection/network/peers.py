"""Helpers for the tests of the network: torchvision's SSD as a reference, random objects and an operator counter."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from detection.network.anchors import ANCHOR_SCALES, ASPECT_RATIOS, default_boxes

GRIDS = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
ANCHORS = default_boxes(GRIDS, ANCHOR_SCALES["ssd"])
NUM_CLASSES = 5


def torchvision_ssd(side: int, **settings) -> SSD:
    """Return torchvision's SSD without a network, for its loss and post-processing. side: image side in pixels."""
    generator = DefaultBoxGenerator([list(ratios) for ratios in ASPECT_RATIOS])
    return SSD(nn.Identity(), generator, (side, side), NUM_CLASSES + 1, head=nn.Identity(), **settings)


def random_objects(
    generator: torch.Generator, batch_size: int, max_objects: int, quantum: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return zero-padded boxes and labels. A large `quantum`, to which boxes are rounded, makes equal IoUs likely."""
    counts = torch.randint(0, max_objects + 1, (batch_size,), generator=generator)
    corner = torch.rand(batch_size, max_objects, 2, generator=generator) * 0.7
    size = torch.rand(batch_size, max_objects, 2, generator=generator) * 0.5 + 0.02
    boxes_xyxy = torch.cat([corner, (corner + size).clamp(max=1)], dim=-1)
    if quantum is not None:
        boxes_xyxy = (boxes_xyxy / quantum).round() * quantum
        boxes_xyxy[..., 2:] = torch.maximum(boxes_xyxy[..., 2:], boxes_xyxy[..., :2] + quantum)
    labels = torch.randint(1, NUM_CLASSES + 1, (batch_size, max_objects), generator=generator)
    is_padding = torch.arange(max_objects) >= counts[:, None]
    return boxes_xyxy.masked_fill(is_padding[..., None], 0), labels.masked_fill(is_padding, 0)


class OperatorCount(TorchDispatchMode):
    """Count the operators that reach the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))
