"""Classification losses for sigmoid scores: focal loss (arXiv 1708.02002) and quality focal loss (arXiv 2006.04388).

Every anchor is trained on every class. Almost all of these pairs are negatives. Up to a factor, the loss of a negative
with logit x is p^2 softplus(x), where p = sigmoid(x) is its score. So this loss and its gradient are computed for all
pairs in a single pass, then corrected at the few pairs of a positive anchor and its class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detection.network.losses.rows import Rows

ALPHA = 0.25  # weight of positives; negatives weigh 1 - ALPHA. The exponents gamma and beta of the papers are 2.

CPU_CHUNK = 2**17  # logits; their intermediate results fit in the CPU's cache
RANGE = (1e-38, 1 - 2**-24)  # of probabilities in float32 whose logarithm is finite and not 0


class _NegativeLoss(torch.autograd.Function):
    """Sum of p^2 softplus(x) over all logits x (B, A, num_classes), with p = sigmoid(x), and the logits of some pairs.

    image, anchor, column: (R) int64, distinct pairs of an anchor and a class. Returns the sum, () float, and the
    logits (R) of the pairs. They are selected here, because PyTorch's gradient of an indexing operation allocates and
    adds a tensor as large as all logits. The only such tensor here is the gradient, which is computed in the forward
    pass. The backward pass modifies it in place, so a second backward pass fails."""

    @staticmethod
    def forward(context, logits: Tensor, image: Tensor, anchor: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        flat = logits.detach().flatten()
        gradient = torch.empty_like(flat)
        size = CPU_CHUNK if flat.is_cpu and not torch.compiler.is_compiling() else max(1, flat.numel())
        sums = [_negative_loss(*part) for part in zip(flat.split(size), gradient.split(size), strict=True)]
        context.save_for_backward(gradient.view(logits.shape), image, anchor, column)
        return torch.stack(sums).sum(), logits.detach()[image, anchor, column]

    @staticmethod
    @once_differentiable
    def backward(context, sum_gradient: Tensor, pair_gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, image, anchor, column = context.saved_tensors
        gradient.mul_(sum_gradient)
        gradient[image, anchor, column] += pair_gradients
        return gradient, None, None, None


def _negative_loss(logits: Tensor, gradient: Tensor) -> Tensor:
    """Return the sum of p^2 softplus(x), and write its gradient p^2 (p + 2 (1 - p) softplus(x)) to `gradient`."""
    scores = logits.sigmoid()
    cost = _softplus(logits, scores)
    squares = scores.square()
    total = torch.dot(squares, cost)
    torch.mul(torch.add(scores, cost.mul_(1 - scores), alpha=2), squares, out=gradient)
    return total


def _softplus(logits: Tensor, scores: Tensor) -> Tensor:
    """Return log(1 + exp(x)) of logits x; scores: p = sigmoid(x).

    PyTorch's softplus uses log1p, which is slow on a CPU and would take most of the time of the loss. An equivalent
    formula is p * log(q) / (q - 1) with q = 1 - p. The quotient stays accurate if q is the rounded sigmoid(-x)."""
    if not logits.is_cpu or torch.compiler.is_compiling():
        return F.softplus(logits)
    opposite = logits.neg()
    q = opposite.sigmoid().clamp_(*RANGE)
    log_q = torch.minimum(q.log(), opposite)  # for large x, where q is clamped, log(q) is -x
    return log_q.div_(q.sub_(1)).mul_(scores)


def focal_loss(class_logits: Tensor, rows: Rows) -> Tensor:
    """Return the focal loss with alpha 0.25 and gamma 2, summed over all anchors and classes, () float32.

    class_logits: (B, A, num_classes) float. rows: of the positive anchors (on a GPU, of all anchors)."""
    negative, x = _negative_loss_and_label_logits(class_logits, rows)
    p = x.sigmoid()
    positive = ALPHA * (1 - p).square() * F.softplus(-x)
    correction = positive - (1 - ALPHA) * p.square() * F.softplus(x)
    return (1 - ALPHA) * negative + correction.where(rows.is_positive, 0).sum()


def quality_focal_loss(class_logits: Tensor, rows: Rows, quality: Tensor) -> Tensor:
    """Return the quality focal loss with beta 2, |q - p|^2 BCE(p, q), summed over all anchors and classes, () float32.

    class_logits, rows: as in `focal_loss`. quality: (R,) float in [0, 1], the target score q of each positive."""
    negative, x = _negative_loss_and_label_logits(class_logits, rows)
    p = x.sigmoid()
    positive = (quality - p).square() * F.binary_cross_entropy_with_logits(x, quality, reduction="none")
    correction = positive - p.square() * F.softplus(x)
    return negative + correction.where(rows.is_positive, 0).sum()


def _negative_loss_and_label_logits(class_logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the loss as if all pairs were negatives, (), and the logit (R) of each row's class (1 for a negative)."""
    return _NegativeLoss.apply(class_logits.float(), rows.image, rows.anchor, (rows.labels - 1).clamp(min=0))
