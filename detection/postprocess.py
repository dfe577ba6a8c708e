"""From the network's output to detections: scores, a threshold, non-maximum suppression per class, the best."""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import batched_nms

from detection.boxes import decode_boxes
from engine.config import Config


class PostprocessConfig(Config):
    """Which of the network's 8,732 boxes per class are reported."""

    score_threshold: float = Field(0.05, ge=0, lt=1, description="smallest score (probability) reported")
    nms_iou: float = Field(
        0.45, ge=0, le=1, description="overlap (IoU) above which the lower-scored box of the same class is dropped"
    )
    max_detections: int = Field(200, gt=0, description="most detections per image, over all classes")


class Detections(NamedTuple):
    """What was found in one image, best first."""

    boxes_xyxy: Tensor  # (n, 4) float32, fractions of the image side, in [0, 1]
    scores: Tensor  # (n,) float32, softmax probabilities
    labels: Tensor  # (n,) int64, 1..num_classes


@torch.no_grad()
def postprocess(
    box_deltas: Tensor,
    class_logits: Tensor,
    anchors_cxcywh: Tensor,
    *,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
) -> list[Detections]:
    """Decode a batch; each image's detections by falling score, equal scores in the order of anchor, then class.

    An anchor is reported once for every class whose score reaches the threshold. Boxes are clipped to the image
    before the suppression. Computed in float32, whatever the network's type.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float, 0 = background.
    anchors_cxcywh: (A, 4) float, fractions of the image side.
    score_threshold, nms_iou, max_detections: see PostprocessConfig.
    """
    scores = class_logits.float().softmax(dim=-1)[..., 1:]  # (B, A, num_classes)
    return [
        _detect(*image, anchors_cxcywh, score_threshold, nms_iou, max_detections)
        for image in zip(box_deltas.float(), scores, strict=True)
    ]


def _detect(
    box_deltas: Tensor,
    scores: Tensor,
    anchors_cxcywh: Tensor,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
) -> Detections:
    """Select one image's detections from its box_deltas (A, 4) and scores (A, num_classes)."""
    anchor, label = (scores >= score_threshold).nonzero(as_tuple=True)
    scores, order = scores[anchor, label].sort(descending=True, stable=True)
    anchor, labels = anchor[order], label[order] + 1
    boxes_xyxy = decode_boxes(box_deltas[anchor], anchors_cxcywh[anchor]).clamp(0, 1)

    # batched_nms returns the survivors by score but leaves ties to an unstable sort. The candidates are in order
    # already: the sorted indices restore it.
    keep = batched_nms(boxes_xyxy, scores, labels, nms_iou).sort().values[:max_detections]
    return Detections(boxes_xyxy[keep], scores[keep], labels[keep])
