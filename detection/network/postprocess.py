"""Turn the network's outputs into detections: scores, score threshold, NMS per class, top detections per image.

Two shortcuts save time and do not change the result. Scores are computed only for anchors where a class can reach the
score threshold. NMS starts with only the highest-scoring pairs of anchor and class, because a pair with a low score
cannot suppress a pair with a higher score. If too few detections remain, NMS gets more pairs.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import nms

from detection.network.boxes import decode_boxes
from detection.network.heads import ScoreFunction, class_scores
from engine.config import Config

ROUNDING_MARGIN = 1e-4  # fraction by which the score threshold is lowered; far larger than rounding errors
INITIAL_PAIRS = 3  # number of pairs of anchor and class in the first round of NMS, per requested detection
SPARE_PAIRS = 1.5  # in later rounds, the estimated number of required pairs is multiplied by this factor


class PostprocessConfig(Config):
    """Settings that decide which predicted boxes are reported."""

    score_threshold: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="smallest score (probability) to report; sigmoid scores (see loss.classification) need a different "
        "threshold than softmax scores",
    )
    nms_iou: float = Field(
        0.45, ge=0, le=1, description="IoU above which NMS drops the lower-scored of two boxes of the same class"
    )
    max_detections: int = Field(
        200, gt=0,
        description="maximum number of detections per image, over all classes; COCO scores use the best 100 per class",
    )  # fmt: skip


class RawDetections(NamedTuple):
    """Detections of one image, by descending score."""

    boxes_xyxy: Tensor  # (n, 4) float32, fractions of the image side, in [0, 1]
    scores: Tensor  # (n,) float32, probabilities: softmax or sigmoid
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
    score_function: ScoreFunction = "softmax",
) -> list[RawDetections]:
    """Return the detections of each image, by descending score, then by anchor, then by class.

    An anchor yields one candidate for each class whose score reaches the threshold. Boxes are clipped to the image
    before NMS. Everything is computed in float32, whatever the dtype of the inputs. NaN logits yield no candidates.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float, 0 = background; for sigmoid scores
    (B, A, num_classes). anchors_cxcywh: (A, 4) float, fractions of the image side.
    score_threshold, nms_iou, max_detections: see PostprocessConfig. score_function: see heads.class_scores."""
    can_reach = _can_reach_threshold(class_logits, score_threshold, score_function)
    return [
        _detect(*image, anchors_cxcywh, score_threshold, nms_iou, max_detections, score_function)
        for image in zip(box_deltas, class_logits, can_reach, strict=True)
    ]


def _can_reach_threshold(class_logits: Tensor, score_threshold: float, score_function: ScoreFunction) -> Tensor:
    """Return a mask (B, A) bool of the anchors where the score of some class may reach the threshold.

    No such anchor is missed, because a class's softmax score is at most sigmoid(logit - background logit)."""
    min_logit = torch.tensor(score_threshold * (1 - ROUNDING_MARGIN), dtype=torch.float64).logit().item()  # -inf for 0
    if score_function == "sigmoid":
        return class_logits.amax(dim=-1).float() >= min_logit
    best_logits = class_logits[..., 1:].amax(dim=-1).float()  # (B, A)
    return best_logits - class_logits[..., 0].float() >= min_logit


def _detect(
    box_deltas: Tensor,
    class_logits: Tensor,
    can_reach: Tensor,
    anchors_cxcywh: Tensor,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    score_function: ScoreFunction,
) -> RawDetections:
    """Return the detections of one image. The tensors have no batch dimension. can_reach: see _can_reach_threshold."""
    candidates = can_reach.nonzero()[:, 0]  # (n,) anchor indices
    scores = class_scores(class_logits[candidates].float(), score_function)  # (n, num_classes)
    detections = RawDetections(box_deltas.new_zeros(0, 4).float(), scores.new_zeros(0), candidates.new_zeros(0))
    best_scores = scores.amax(dim=1).nan_to_num()  # (n,); NaN reaches no threshold, but topk ranks it first
    start, stop = 0, INITIAL_PAIRS * max_detections
    while True:
        candidate, label = (pairs[start:] for pairs in _best_pairs(scores, best_scores, score_threshold, stop))
        anchor = candidates[candidate]
        boxes_xyxy = decode_boxes(box_deltas[anchor].float(), anchors_cxcywh[anchor]).clamp(0, 1)
        # NMS keeps all earlier detections: they do not suppress each other, and new detections do not score higher.
        new = RawDetections(boxes_xyxy, scores[candidate, label], label + 1)
        detections = RawDetections(*map(torch.cat, zip(detections, new, strict=True)))
        keep = _class_nms(*detections, nms_iou)[:max_detections]
        detections = RawDetections(*(column[keep] for column in detections))
        if len(keep) == max_detections or len(anchor) < stop - start:
            return detections
        missing = max_detections - len(keep)
        start, stop = stop, stop + min(stop, math.ceil(SPARE_PAIRS * missing * stop / max(1, len(keep))))


def _best_pairs(scores: Tensor, best_scores: Tensor, score_threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """Return the row and column indices of the highest scores that reach the threshold, at most `limit` scores.

    scores: (n, num_classes). best_scores: (n,), the maximum of each row.
    The indices are ordered by descending score, then by row, then by column."""
    min_score = scores.new_full((), score_threshold)
    if len(scores) > limit:  # at least `limit` scores reach the limit-th highest row maximum, so skip the rest
        min_score = torch.maximum(min_score, best_scores.topk(limit).values[-1])
    rows = (best_scores >= min_score).nonzero()[:, 0]
    scores = scores[rows]
    row, column = (scores >= min_score).nonzero(as_tuple=True)
    order = scores[row, column].argsort(descending=True, stable=True)[:limit]
    return rows[row[order]], column[order]


def _class_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, nms_iou: float) -> Tensor:
    """Apply NMS to each class and return the indices of the remaining boxes, by descending score.

    boxes_xyxy: (n, 4) in [0, 1]. One call of `nms` handles all classes: the boxes of each class are shifted by a
    different offset and so do not overlap boxes of other classes. In float64, the shift does not round coordinates."""
    shifted = boxes_xyxy.double() + 2 * labels[:, None]
    return nms(shifted, scores.double(), nms_iou)
