"""Classification losses of sigmoid scores: focal loss (arXiv 1708.02002) and quality focal loss (arXiv 2006.04388).

Every anchor is trained on every class. Almost all of these pairs are negatives. Up to a factor, the loss of a negative
with logit x is p^2 softplus(x), where p = sigmoid(x) is its score. So this loss and its gradient are computed for all
pairs in a single pass, then corrected at the few pairs of a positive anchor and its class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detection.network.rows import Rows

ALPHA = 0.25  # weight of positives; negatives weigh 1 - ALPHA. The exponents gamma and beta of the papers are 2.

CPU_CHUNK = 2**18  # logits; their intermediate results fit in the CPU's cache


class _NegativeLoss(torch.autograd.Function):
    """Sum of p^2 softplus(x) over all logits x, with p = sigmoid(x). Saves only the gradient."""

    @staticmethod
    def forward(context, logits: Tensor) -> Tensor:
        flat = logits.detach().flatten()
        gradient = torch.empty_like(flat)
        size = CPU_CHUNK if flat.is_cpu and not torch.compiler.is_compiling() else max(1, flat.numel())
        sums = [_negative_loss(*part) for part in zip(flat.split(size), gradient.split(size), strict=True)]
        context.save_for_backward(gradient.view(logits.shape))
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(context, factor: Tensor) -> Tensor:
        return context.saved_tensors[0] * factor


def _negative_loss(logits: Tensor, gradient: Tensor) -> Tensor:
    """Return the sum of p^2 softplus(x), and write its gradient p^2 (p + 2 (1 - p) softplus(x)) to `gradient`."""
    scores, cost = logits.sigmoid(), F.softplus(logits)
    squares = scores.square()
    total = torch.dot(squares, cost)
    torch.mul(cost.mul_(1 - scores).mul_(2).add_(scores), squares, out=gradient)
    return total


def focal_loss(class_logits: Tensor, rows: Rows) -> Tensor:
    """Return the focal loss with alpha 0.25 and gamma 2, summed over all anchors and classes, () float32.

    class_logits: (B, A, num_classes) float. rows: the positive anchors (on a GPU, all anchors)."""
    logits = class_logits.float()
    x = _label_logits(logits, rows)
    p = x.sigmoid()
    positive = ALPHA * (1 - p).square() * F.softplus(-x)
    correction = positive - (1 - ALPHA) * p.square() * F.softplus(x)
    return (1 - ALPHA) * _NegativeLoss.apply(logits) + correction.where(rows.is_positive, 0).sum()


def quality_focal_loss(class_logits: Tensor, rows: Rows, quality: Tensor) -> Tensor:
    """Return the quality focal loss with beta 2, |q - p|^2 BCE(p, q), summed over all anchors and classes, () float32.

    class_logits, rows: as in `focal_loss`. quality: (R,) float in [0, 1], the target score q of each positive."""
    logits = class_logits.float()
    x = _label_logits(logits, rows)
    p = x.sigmoid()
    positive = (quality - p).square() * F.binary_cross_entropy_with_logits(x, quality, reduction="none")
    correction = positive - p.square() * F.softplus(x)
    return _NegativeLoss.apply(logits) + correction.where(rows.is_positive, 0).sum()


def _label_logits(logits: Tensor, rows: Rows) -> Tensor:
    """Return the logit (R,) of each row's class; of class 1 for a negative row."""
    return logits[rows.index].gather(-1, (rows.labels - 1).clamp(min=0)[..., None])[..., 0]
