"""Assignment and losses of a detector: which default boxes are trained to find which object, and with which loss.

`LossConfig` chooses the parts, and `Criterion` computes them for a batch, without GPU synchronisation. The default is
the MultiBox loss with hard negative mining (SSD, arXiv 1512.02325, section 2.2, eq. 1): its losses and gradients equal
those of torchvision's SSD.compute_loss. The alternatives are in atss.py, task_aligned.py, focal.py, box_loss.py and
pisa.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from detection.network.assignment.atss import match_atss
from detection.network.assignment.matching import CPU_CHUNKS, match_anchors
from detection.network.assignment.task_aligned import match_task_aligned
from detection.network.heads import ScoreFunction
from detection.network.losses.box_loss import BOX_LOSSES, predicted_iou
from detection.network.losses.focal import focal_loss, quality_focal_loss
from detection.network.losses.pisa import importance_weights, score_weights
from detection.network.losses.rows import Rows, positive_rows, select_rows, used_rows
from engine.config import Config

# Classification losses, and how they turn logits into scores.
SCORE_FUNCTIONS: dict[str, ScoreFunction] = {"multibox": "softmax", "focal": "sigmoid", "quality_focal": "sigmoid"}


class LossConfig(Config):
    """Settings of the assignment of objects to default boxes, and of the losses. The defaults are those of SSD."""

    classification: Literal["multibox", "focal", "quality_focal"] = Field(
        "multibox",
        description="multibox: softmax and the hardest negatives (SSD); focal: sigmoid, all negatives, hard ones weigh "
        "more (arXiv 1708.02002); quality_focal: focal, and the score is trained to be the IoU (arXiv 2006.04388)",
    )
    assignment: Literal["iou", "atss", "task_aligned"] = Field(
        "iou",
        description="which default boxes are positive: iou: those with an IoU of at least match_iou, and the best one "
        "of each object (SSD); atss: those above an IoU threshold per object (arXiv 1912.02424); task_aligned: those "
        "that predict the object best (arXiv 2108.07755; needs quality_focal)",
    )
    box: Literal["smooth_l1", "giou", "ciou"] = Field(
        "smooth_l1",
        description="box loss: smooth_l1 of the offsets, summed over four coordinates (SSD); giou: 1 - GIoU (arXiv "
        "1902.09630); ciou: 1 - CIoU (arXiv 1911.08287). The values of giou and ciou are smaller than those of "
        "smooth_l1, so raise box_weight",
    )
    reweight: Literal["none", "pisa"] = Field(
        "none",
        description="pisa: positives that locate their object well weigh more in the classification loss, and "
        "positives with a high score weigh more in an additional box loss (arXiv 1904.04821; needs multibox)",
    )
    box_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the box loss relative to the classification loss; with smooth_l1, 1.0 as in the SSD "
        "paper; 0.25 as in the reference code, which averages over the coordinates",
    )
    negatives_per_positive: int = Field(
        3, gt=0, description="number of hard negatives to train on per matched box; only for multibox"
    )
    match_iou: float = Field(
        0.5,
        gt=0,
        le=1,
        description="smallest IoU at which a default box matches an object, for the assignment iou; with every "
        "assignment, the IoU that counts in the recall of the default boxes (see model.anchor_scales auto)",
    )

    @property
    def score_function(self) -> ScoreFunction:
        """How logits become scores: "softmax" over background and the classes, or "sigmoid" for each class."""
        return SCORE_FUNCTIONS[self.classification]

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.assignment == "task_aligned" and self.classification != "quality_focal":
            raise ValueError(
                f"assignment task_aligned needs classification quality_focal, not {self.classification}, because the "
                "scores are trained to be its alignment; set classification to quality_focal, or assignment to atss"
            )
        if self.reweight == "pisa" and self.classification != "multibox":
            raise ValueError(
                f"reweight pisa needs classification multibox, not {self.classification}; set reweight to none"
            )
        return self


@dataclass(frozen=True)
class Criterion:
    """Assign default boxes to the objects of a batch and compute the losses. The fields are those of LossConfig.

    cells_per_level: number of cells of each level's feature map, in the order of the default boxes."""

    cells_per_level: tuple[int, ...]
    classification: str = "multibox"
    assignment: str = "iou"
    box: str = "smooth_l1"
    reweight: str = "none"
    box_weight: float = 1.0
    negatives_per_positive: int = 3
    match_iou: float = 0.5

    def __call__(
        self, box_deltas: Tensor, class_logits: Tensor, boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses, summed over the batch, and the count that they are divided by.

        Everything is computed in float32, also under autocast, and separately for each image, so that the split of a
        batch over ranks has no effect. Without positives, the losses are still differentiable, so that the rank takes
        part in DDP's all-reduce.

        box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float with background first, or
        (B, A, num_classes) if the scores are sigmoids. boxes_xyxy: (B, M, 4) float, fractions of the image side.
        labels: (B, M) int64, 1..num_classes, 0 = padding. anchors_cxcywh: (A, 4) float, fractions of the image side.
        Returns {"classification": (), "box": (), ...} and the number of positives or, with task_aligned, the sum of
        their alignments, as scalars on the device."""
        matched, alignment = self.assign(box_deltas, class_logits, boxes_xyxy, labels, anchors_cxcywh)
        outputs = (box_deltas, class_logits, matched, boxes_xyxy, labels, anchors_cxcywh)
        if self.classification == "multibox":
            sums = multibox_loss(*outputs, self.negatives_per_positive, self.box, self.reweight)
        else:
            sums = sigmoid_loss(*outputs, alignment, self.classification, self.box)
        num_positives = sums.pop("num_positives")
        count = num_positives if alignment is None else alignment.sum()
        losses = {name: self.box_weight * loss if name.startswith("box") else loss for name, loss in sums.items()}
        return losses, count

    def assign(
        self, box_deltas: Tensor, class_logits: Tensor, boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the index of each anchor's object, or NO_OBJECT, (B, A) int64, and its alignment (B, A) or None.

        The arguments are those of `__call__`. Only task_aligned depends on the predictions and returns an alignment."""
        if self.assignment == "task_aligned":
            return match_task_aligned(box_deltas, class_logits, boxes_xyxy, labels, anchors_cxcywh)
        if self.assignment == "atss":
            return match_atss(boxes_xyxy, labels, anchors_cxcywh, self.cells_per_level), None
        return match_anchors(boxes_xyxy, labels, anchors_cxcywh, self.match_iou), None


def multibox_loss(
    box_deltas: Tensor,
    class_logits: Tensor,
    matched: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    anchors_cxcywh: Tensor,
    negatives_per_positive: int,
    box: str = "smooth_l1",
    reweight: str = "none",
) -> dict[str, Tensor]:
    """Compute the MultiBox losses, summed over the batch.

    Positives are the matched anchors. An image's hardest negatives are the unmatched anchors with the lowest background
    probability. The classification loss is the softmax cross-entropy of the positives and hardest negatives. Without
    positives, all sums are zero.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float, 0 = background.
    matched: (B, A) int64, the index of the matched object, or -1.
    boxes_xyxy: (B, M, 4) float, fractions of the image side. labels: (B, M) int64, 1..num_classes, 0 = padding.
    anchors_cxcywh: (A, 4) float, fractions of the image side.
    negatives_per_positive: number of negatives per positive of the same image; fewer if the image has too few.
    box: a key of BOX_LOSSES. reweight: none, or pisa (see pisa.py).
    Returns {"classification": (), "box": (), "num_positives": ()}: float32 sums and an int64 count; with pisa, also
    "box_by_score": ()."""
    is_positive = matched >= 0  # (B, A)
    targets = (matched, box_deltas, boxes_xyxy, labels, anchors_cxcywh)
    is_trained = _trained_anchors(class_logits, is_positive, negatives_per_positive)  # (B, A)
    rows = select_rows(used_rows(is_trained), *targets)
    is_trained = is_trained[rows.index]  # (R)
    row_logits = class_logits[rows.index].float()  # (R, num_classes + 1)
    cross_entropy = F.cross_entropy(row_logits.flatten(0, -2), rows.labels.flatten(), reduction="none")
    sums = {"box": BOX_LOSSES[box](rows).sum(), "num_positives": is_positive.sum()}
    if reweight == "pisa":
        weights, sums["box_by_score"] = _prime_samples(
            class_logits, select_rows(positive_rows(is_positive), *targets), box
        )
        cross_entropy = cross_entropy * weights[rows.index].flatten()
    return {"classification": cross_entropy.where(is_trained.flatten(), 0).sum()} | sums


def sigmoid_loss(
    box_deltas: Tensor,
    class_logits: Tensor,
    matched: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    anchors_cxcywh: Tensor,
    alignment: Tensor | None,
    classification: str,
    box: str,
) -> dict[str, Tensor]:
    """Compute the losses of a detector with sigmoid scores, summed over the batch.

    classification: focal or quality_focal (see focal.py). The target score of a positive anchor is 1 for focal. For
    quality_focal it is the alignment (B, A) or, if that is None, the IoU of its predicted box with the object. The box
    loss of an anchor is multiplied by its alignment, as in TOOD (arXiv 2108.07755, eq. 8).
    class_logits: (B, A, num_classes) float. All other arguments and the result are as in `multibox_loss`."""
    is_positive = matched >= 0  # (B, A)
    rows = select_rows(used_rows(is_positive), matched, box_deltas, boxes_xyxy, labels, anchors_cxcywh)
    row_losses = BOX_LOSSES[box](rows)  # (R, 4) or (R, 1)
    if alignment is not None:
        row_losses = row_losses * alignment[rows.index][..., None]
    if classification == "focal":
        loss = focal_loss(class_logits, rows)
    else:
        loss = quality_focal_loss(
            class_logits, rows, predicted_iou(rows) if alignment is None else alignment[rows.index]
        )
    return {"classification": loss, "box": row_losses.sum(), "num_positives": is_positive.sum()}


def _prime_samples(class_logits: Tensor, rows: Rows, box: str) -> tuple[Tensor, Tensor]:
    """Return the weights (B, A) of all anchors in the classification loss, and the sum of the additional box loss.

    class_logits: (B, A, num_classes + 1). rows: (B, K), all positives and some negatives. box: a key of BOX_LOSSES."""
    logits = class_logits[rows.index].float()  # (B, K, num_classes + 1)
    log_scores = logits.log_softmax(dim=-1).gather(-1, rows.labels[..., None])[..., 0]  # (B, K)
    row_weights = importance_weights(
        predicted_iou(rows), rows.labels, rows.objects, rows.is_positive, -log_scores.detach()
    )
    weights = torch.ones(class_logits.shape[:2], device=class_logits.device)
    weights[rows.index] = row_weights
    factors = score_weights(log_scores.exp(), rows.is_positive)
    return weights, (factors * BOX_LOSSES[box](rows).sum(dim=-1)).sum()


@torch.no_grad()
def _trained_anchors(class_logits: Tensor, is_positive: Tensor, negatives_per_positive: int) -> Tensor:
    """Return a mask (B, A) bool of the anchors in the classification loss: positives and hardest negatives."""
    num_trained = is_positive.sum(dim=1, keepdim=True) * (1 + negatives_per_positive)  # (B, 1)
    hardness = _background_cross_entropy(class_logits).masked_fill(is_positive, torch.inf)  # (B, A)
    if hardness.is_cpu:  # find only as many anchors as needed; on a GPU, reading this number would synchronise
        max_trained = min(int(num_trained.max()), hardness.shape[1])
        hardest_first = hardness.topk(max_trained, dim=1).indices
    else:
        hardest_first = hardness.argsort(dim=1, descending=True, stable=True)
    is_among_first = torch.arange(hardest_first.shape[1], device=hardness.device) < num_trained
    return torch.zeros_like(is_positive).scatter_(1, hardest_first, is_among_first)


def _background_cross_entropy(class_logits: Tensor) -> Tensor:
    """Return -log of the softmax probability of background, (B, A) float32, from logits (B, A, num_classes + 1)."""
    if not class_logits.is_cpu or torch.compiler.is_compiling():
        return -class_logits.log_softmax(dim=-1, dtype=torch.float32)[..., 0]
    # On a CPU, allocating memory for all log probabilities takes longer than computing them, so chunks share a buffer.
    rows, result = class_logits.flatten(0, 1), torch.empty(class_logits.shape[:2])
    chunks = rows.chunk(CPU_CHUNKS)
    buffer = torch.empty_like(chunks[0], dtype=torch.float32)
    for chunk, chunk_result in zip(chunks, result.flatten().chunk(CPU_CHUNKS), strict=True):
        log_probabilities = torch.log_softmax(chunk, dim=-1, dtype=torch.float32, out=buffer[: len(chunk)])
        torch.neg(log_probabilities[:, 0], out=chunk_result)
    return result


def constant_predictor_loss(class_counts: Sequence[int] | Tensor, negatives_per_positive: int) -> float:
    """Return the classification loss per positive of the best constant predictor.

    The loss stays at this value if a network learns nothing from the images. A constant predictor gives every anchor
    the same class probabilities p, background first. Let a fraction f_c of the positives have class c, let k
    negatives be trained per positive, and let q = (k, f_1, ..., f_C) / (k + 1). The loss per positive is (k + 1) times
    the cross-entropy H(q, p). Its minimum, at p = q, is (k + 1) times the entropy H(q) in nats.

    class_counts: (num_classes,) number of objects of each class; f_c is estimated as the share of class c.
    negatives_per_positive: k. Raises ValueError if all counts are zero."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if not counts.sum() > 0:
        raise ValueError(f"class counts {counts.tolist()}: expected at least one object")
    k = negatives_per_positive
    target = torch.cat([counts.new_tensor([k]), counts / counts.sum()]) / (k + 1)
    return (k + 1) * torch.special.entr(target).sum().item()
