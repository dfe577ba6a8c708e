"""Match default boxes to objects by the quality of their predictions (TOOD, arXiv 2108.07755, section 3.2).

An alternative to `matching.match_anchors` for a whole batch, without GPU synchronisation. The anchors with the best
predictions of class and box become the positives, and the quality of a prediction is the target of its score.
"""

import torch
from torch import Tensor

from detection.network.assignment.matching import CPU_CHUNKS, is_inside, paired_iou, resolve_conflicts
from detection.network.boxes import decode_boxes

SCORE_EXPONENT = 1  # alpha in the paper
IOU_EXPONENT = 6  # beta in the paper
MAX_POSITIVES = 13  # m in the paper: the largest number of positives of an object


@torch.no_grad()
def match_task_aligned(
    box_deltas: Tensor, class_logits: Tensor, boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor
) -> tuple[Tensor, Tensor]:
    """Match each anchor to an object or to background, and measure how well its predictions fit the object.

    1. The alignment of an anchor and an object is t = s^1 * u^6, where s is the predicted score of the object's class
       and u is the IoU of the predicted box and the object.
    2. Of the anchors whose centre is inside the object and whose t is above 0, the 13 with the highest t are the
       positives of the object. If several t are equal, the lowest index is chosen.
    3. An anchor that is positive for several objects matches the one with the highest u, the lowest index if equal.
    4. The alignments of an object's remaining positives are multiplied by a factor, so that the largest alignment
       equals the largest u of these positives.
    An object may have no positive: for example, if it is small and contains no centre of an anchor.

    All values are computed in float32, also under autocast.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes) float, before sigmoid, without background.
    boxes_xyxy: (B, M, 4) float, fractions of the image side. M is the largest number of objects per image, at least 1.
    labels: (B, M) int64, 1..num_classes, 0 = padding. Padding and boxes without an area match nothing.
    anchors_cxcywh: (A, 4) float, fractions of the image side, clipped at the border, which moves centres.
    Returns matched (B, A) int64: the index of the matched object, 0..M-1, or NO_OBJECT (-1) for background; and
    alignment (B, A) float32, from step 4, 0 for background."""
    boxes_xyxy = boxes_xyxy.masked_fill((labels == 0)[..., None], 0)  # a box without an area contains no centre
    predicted_xyxy = decode_boxes(box_deltas.float(), anchors_cxcywh)  # (B, A, 4)
    x, y = anchors_cxcywh[:, :2].T.contiguous()  # (A,) each
    selects = boxes_xyxy.is_cpu and not torch.compiler.is_compiling()
    find_candidates = _candidates_of_selected_pairs if selects else _candidates_of_all_pairs
    candidates = find_candidates(predicted_xyxy, class_logits, boxes_xyxy, labels, x, y)  # (B, M, K)

    image = torch.arange(len(labels), device=labels.device)[:, None, None]
    logits = class_logits[image, candidates, _classes(labels)[..., None]]
    boxes_xyxy = boxes_xyxy[:, :, None]  # (B, M, 1, 4)
    t, iou = _measure(logits, predicted_xyxy[image, candidates], boxes_xyxy, x[candidates], y[candidates])
    matched, is_positive = resolve_conflicts(candidates, iou, t > 0, len(x))

    t, iou = t.where(is_positive, 0), iou.where(is_positive, 0)
    normalized = t / t.amax(dim=2, keepdim=True) * iou.amax(dim=2, keepdim=True)  # NaN without positives
    normalized = normalized.where(is_positive, 0)
    alignment = torch.zeros_like(matched, dtype=torch.float32)
    return matched, alignment.scatter_reduce(1, candidates.flatten(1), normalized.flatten(1), "amax")


def _measure(
    class_logits: Tensor, predicted_xyxy: Tensor, boxes_xyxy: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the alignment t and the IoU u of pairs, (...) float32 each; t is 0 if the anchor's centre is outside.

    class_logits: (...), of the object's class. predicted_xyxy: (..., 4). boxes_xyxy: (..., 4), the objects.
    x, y: (...), centres of the anchors. All arguments are broadcast."""
    iou = paired_iou(boxes_xyxy, predicted_xyxy)
    t = class_logits.float().sigmoid() ** SCORE_EXPONENT * iou**IOU_EXPONENT
    return t.where(is_inside(x, y, boxes_xyxy), 0), iou


def _candidates_of_all_pairs(
    predicted_xyxy: Tensor, class_logits: Tensor, boxes_xyxy: Tensor, labels: Tensor, x: Tensor, y: Tensor
) -> Tensor:
    """Return the anchors with the highest t of each object, (B, M, K) int64.

    predicted_xyxy: (B, A, 4), decoded boxes. x, y: (A,), centres of the anchors."""
    images = torch.arange(len(labels), device=labels.device)[:, None]
    logits = class_logits[images, :, _classes(labels)]  # (B, M, A)
    t, _ = _measure(logits, predicted_xyxy[:, None], boxes_xyxy[:, :, None], x, y)
    return _highest(_keys(t, torch.arange(len(x), device=t.device)))


def _candidates_of_selected_pairs(
    predicted_xyxy: Tensor, class_logits: Tensor, boxes_xyxy: Tensor, labels: Tensor, x: Tensor, y: Tensor
) -> Tensor:
    """Return the same as `_candidates_of_all_pairs`, apart from anchors with t = 0, but faster on a CPU.

    It computes t only for the anchors inside the objects. On a GPU, selecting pairs would synchronise, because their
    number is not known in advance."""
    images, objects = labels.nonzero(as_tuple=True)  # (N,) each: the objects of all images
    candidates = []
    for image, m in zip(images.chunk(CPU_CHUNKS), objects.chunk(CPU_CHUNKS), strict=True):  # (n,) each
        boxes, classes = boxes_xyxy[image, m], _classes(labels[image, m])
        pairs = row, anchor = is_inside(x, y, boxes[:, None]).nonzero(as_tuple=True)  # (P,) each
        logits = class_logits[image[row], anchor, classes[row]]
        t, _ = _measure(logits, predicted_xyxy[image[row], anchor], boxes[row], x[anchor], y[anchor])
        keys = torch.zeros(len(boxes), len(x), dtype=torch.int64).index_put_(pairs, _keys(t, anchor))
        candidates.append(_highest(keys))
    candidates = torch.cat(candidates)  # (N, K)
    return candidates.new_zeros(*labels.shape, candidates.shape[1]).index_put_((images, objects), candidates)


def _classes(labels: Tensor) -> Tensor:
    """Return the column of the class logits for each label; an arbitrary column for padding."""
    return (labels - 1).clamp(min=0)


def _keys(t: Tensor, anchor: Tensor) -> Tensor:
    """Return int64 keys (...) that sort by t, then by descending anchor index. t: (...) float32, not negative.

    topk needs these keys, because it chooses arbitrarily between equal numbers. The upper half of a key is the bits of
    t, which sort like the number if it is not negative."""
    return (t.view(torch.int32).long() << 32) - anchor


def _highest(keys: Tensor) -> Tensor:
    """Return the indices (..., K) of the highest keys (..., A)."""
    return keys.topk(min(MAX_POSITIVES, keys.shape[-1]), dim=-1).indices
