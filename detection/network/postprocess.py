"""From the network's output to detections: scores, a threshold, non-maximum suppression per class, the best.

Only anchors whose logits can reach the threshold get a softmax. What is suppressed depends only on better pairs of
anchor and class, so the best few hundred nearly always yield enough detections.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import nms

from detection.network.boxes import decode_boxes
from engine.config import Config

ROUNDING = 1e-4  # relative, far above what rounding can do to a score
FIRST_PAIRS = 3  # per detection asked for
SPARE_PAIRS = 1.5  # where these were too few: times what it takes for the rest if detections go on coming at their rate


class PostprocessConfig(Config):
    """Which of the network's boxes are reported: it has one for each default box and class."""

    score_threshold: float = Field(0.05, ge=0, lt=1, description="smallest score (probability) reported")
    nms_iou: float = Field(
        0.45, ge=0, le=1, description="overlap (IoU) above which the lower-scored box of the same class is dropped"
    )
    max_detections: int = Field(
        200, gt=0,
        description="most detections per image, over all classes; COCO's scores use at most the best 100 of each class",
    )  # fmt: skip


class RawDetections(NamedTuple):
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
) -> list[RawDetections]:
    """Decode a batch; each image's detections by falling score, equal scores in the order of anchor, then class.

    An anchor is reported once for every class whose score reaches the threshold. Boxes are clipped to the image
    before the suppression. Computed in float32, whatever the network's type.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float, 0 = background.
    anchors_cxcywh: (A, 4) float, fractions of the image side.
    score_threshold, nms_iou, max_detections: see PostprocessConfig.
    """
    can_reach = _can_reach(class_logits, score_threshold)
    return [
        _detect(*image, anchors_cxcywh, score_threshold, nms_iou, max_detections)
        for image in zip(box_deltas, class_logits, can_reach, strict=True)
    ]


def _can_reach(class_logits: Tensor, score_threshold: float) -> Tensor:
    """Tell which anchors may have a class whose score reaches the threshold: (B, A) bool, never wrongly False.

    A score is at most what it would be without the other classes, sigmoid(logit - background's logit).
    """
    least = torch.tensor(score_threshold * (1 - ROUNDING), dtype=torch.float64).logit().item()  # -inf for 0
    best_logits = class_logits[..., 1:].amax(dim=-1).float()  # (B, A)
    return best_logits - class_logits[..., 0].float() >= least


def _detect(
    box_deltas: Tensor,
    class_logits: Tensor,
    can_reach: Tensor,
    anchors_cxcywh: Tensor,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
) -> RawDetections:
    """Select one image's detections from its box_deltas (A, 4) and class_logits (A, num_classes + 1)."""
    candidates = can_reach.nonzero()[:, 0]  # (n,) anchors
    scores = class_logits[candidates].float().softmax(dim=-1)[:, 1:]  # (n, num_classes)
    found = RawDetections(box_deltas.new_zeros(0, 4).float(), scores.new_zeros(0), candidates.new_zeros(0))
    best_scores = scores.amax(dim=1).nan_to_num()  # (n,); NaN reaches no threshold, but topk takes it for the largest
    start, stop = 0, FIRST_PAIRS * max_detections
    while True:
        candidate, label = (pairs[start:] for pairs in _best_pairs(scores, best_scores, score_threshold, stop))
        anchor = candidates[candidate]
        boxes_xyxy = decode_boxes(box_deltas[anchor].float(), anchors_cxcywh[anchor]).clamp(0, 1)
        # What was found is better than all that is new, and none of it suppresses another: it stays.
        further = RawDetections(boxes_xyxy, scores[candidate, label], label + 1)
        found = RawDetections(*map(torch.cat, zip(found, further, strict=True)))
        keep = _class_nms(*found, nms_iou)[:max_detections]
        found = RawDetections(*(column[keep] for column in found))
        if len(keep) == max_detections or len(anchor) < stop - start:
            return found
        missing = max_detections - len(keep)
        start, stop = stop, stop + min(stop, math.ceil(SPARE_PAIRS * missing * stop / max(1, len(keep))))


def _best_pairs(scores: Tensor, best_scores: Tensor, score_threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """Return row and column of the `limit` best scores (n, C) that reach the threshold, or of all if they are fewer.

    By falling score, equal ones by row, then column. best_scores: each row's (n,).
    """
    least = scores.new_full((), score_threshold)
    if len(scores) > limit:  # so many rows have a pair at least as good as the best of the last of them
        least = torch.maximum(least, best_scores.topk(limit).values[-1])
    rows = (best_scores >= least).nonzero()[:, 0]
    scores = scores[rows]
    row, column = (scores >= least).nonzero(as_tuple=True)
    order = scores[row, column].argsort(descending=True, stable=True)[:limit]
    return rows[row[order]], column[order]


def _class_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, nms_iou: float) -> Tensor:
    """Suppress boxes (n, 4) in [0, 1] that overlap a better one of their class; the survivors, best first.

    One call for all classes, whose boxes are moved apart, in float64 so that this does not round them."""
    apart = boxes_xyxy.double() + 2 * labels[:, None]
    return nms(apart, scores.double(), nms_iou)
