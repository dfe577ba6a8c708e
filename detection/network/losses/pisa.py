"""Prime sample attention (PISA, arXiv 1904.04821): give the positives that locate their object well a higher weight.

- Importance-based reweighting (ISR): the positives of an image are ranked by the IoU of their predicted box with their
  object, first within each object, then within each class. The weight in the classification loss falls with the rank.
- Classification-aware regression loss (CARL): an additional box loss, in which positives weigh more if the score of
  their class is higher. Its gradient lowers the scores of positives with a
  poor box.

In the paper, ranks and normalisation are computed over the images of one GPU. Here they are computed within each image,
so that the split of a batch over ranks has no effect.
"""

import torch
from torch import Tensor

# Exponent of ISR and bias of CARL. The bias of ISR is 0, the exponent of CARL is 1. All four as in the authors' SSD.
EXPONENT = 2.0
SCORE_BIAS = 0.2


@torch.no_grad()
def importance_weights(
    iou: Tensor, labels: Tensor, objects: Tensor, is_positive: Tensor, classification: Tensor
) -> Tensor:
    """Return the weight of each positive in the classification loss, (B, K) float32; 1 for all others.

    The weights are scaled so that the sum of an image's classification losses over its positives does not change.

    iou: (B, K) float, of the predicted box with the object. labels: (B, K) int64. objects: (B, K) int64, the index of
    the object in the image. is_positive: (B, K) bool. classification: (B, K) float, the classification losses."""
    labels, objects = labels.where(is_positive, 0), objects.where(is_positive, -1)
    by_iou = iou.argsort(dim=1, descending=True, stable=True)
    rank_in_object = _rank_in_group(objects, by_iou)
    by_rank = by_iou.gather(1, rank_in_object.gather(1, by_iou).argsort(dim=1, stable=True))
    rank = _rank_in_group(labels, by_rank)
    largest_class = (rank + 1).where(is_positive, 1).amax(dim=1, keepdim=True)  # positives of the most frequent class
    weights = ((largest_class - rank) / largest_class).clamp(min=0).pow(EXPONENT).where(is_positive, 0)
    old = classification.where(is_positive, 0).sum(dim=1, keepdim=True)
    new = (weights * classification).sum(dim=1, keepdim=True)
    return (weights * (old / new).where(new > 0, 1)).where(is_positive, 1)


def _rank_in_group(groups: Tensor, order: Tensor) -> Tensor:
    """Return the rank of each element within its group, from 0, (B, K) int64.

    groups: (B, K) int64, the group of each element. order: (B, K) int64, the elements from first to last."""
    order = order.gather(1, groups.gather(1, order).argsort(dim=1, stable=True))  # by group, then as before
    sorted_groups = groups.gather(1, order)
    position = torch.arange(order.shape[1], device=order.device).expand_as(order)
    is_first = torch.ones_like(order, dtype=torch.bool)
    is_first[:, 1:] = sorted_groups[:, 1:] != sorted_groups[:, :-1]
    first = position.where(is_first, 0).cummax(dim=1).values
    return torch.zeros_like(order).scatter(1, order, position - first)


def score_weights(scores: Tensor, is_positive: Tensor) -> Tensor:
    """Return the weight of each positive in the additional box loss, (B, K) float32; 0 for all others.

    The weights of an image's positives have mean 1. They are differentiable.
    scores: (B, K) float, predicted probability of the object's class."""
    weights = (SCORE_BIAS + (1 - SCORE_BIAS) * scores).where(is_positive, 0)
    mean = weights.sum(dim=1, keepdim=True) / is_positive.sum(dim=1, keepdim=True).clamp(min=1)
    return weights / mean.where(mean > 0, 1)
