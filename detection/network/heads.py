"""The heads of the detector: on each map, 3x3 convolutions that predict boxes and class logits.

In the SSD paper (arXiv 1512.02325, figure 2), a head is one convolution. In RetinaNet (arXiv 1708.02002, section 4),
FCOS (arXiv 1904.01355) and YOLOX (decoupled head, arXiv 2107.08430, section 2.1), a tower of convolutions comes before
it. As there, boxes and classes have separate towers. Levels with the same number of channels share a tower. Unlike
there, the output of a tower is added to its input. Without this shortcut, the box loss stayed on a plateau in short
training runs (docs/recipe.md).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detection.network.anchors import BOXES_PER_CELL

# How class logits become scores: softmax over the classes and background, or a sigmoid per class, without background.
ScoreFunction = Literal["softmax", "sigmoid"]

# Initial probability that an anchor has any foreground class (softmax) or each of them (sigmoid).
FOREGROUND_PRIOR = 0.01

# GroupNorm (arXiv 1803.08494) with 32 groups, and 8 channels per group as for 256 channels. With fewer channels per
# group, the normalised values of a map of one cell would be almost constant.
MOST_GROUPS = 32
MIN_GROUP_CHANNELS = 8


def logits_per_box(num_classes: int, score_function: ScoreFunction) -> int:
    """Return the number of class logits of each default box: softmax needs one more, for background."""
    return {"softmax": num_classes + 1, "sigmoid": num_classes}[score_function]


def class_scores(class_logits: Tensor, score_function: ScoreFunction) -> Tensor:
    """Return the scores of the foreground classes, (..., num_classes). class_logits: (..., logits_per_box)."""
    return class_logits.softmax(dim=-1)[..., 1:] if score_function == "softmax" else class_logits.sigmoid()


def make_head(in_channels: Sequence[int], outputs_per_box: int) -> nn.ModuleList:
    """Create one 3x3 convolution per level, with outputs_per_box output channels for each default box of a cell."""
    return nn.ModuleList(
        nn.Conv2d(channels, boxes * outputs_per_box, kernel_size=3, padding=1)
        for channels, boxes in zip(in_channels, BOXES_PER_CELL, strict=True)
    )


def make_towers(in_channels: Sequence[int], num_convolutions: int) -> nn.ModuleDict:
    """Create a tower for each number of channels, which all levels with this number of channels share.

    A tower repeats a 3x3 convolution, GroupNorm and ReLU num_convolutions times. Its key is the number of channels.
    There are no towers if num_convolutions is 0."""
    towers = nn.ModuleDict()
    for channels in dict.fromkeys(in_channels if num_convolutions else ()):
        layers: list[nn.Module] = []
        for _ in range(num_convolutions):
            layers.append(nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False))
            layers.append(nn.GroupNorm(num_groups(channels), channels))
            layers.append(nn.ReLU(inplace=True))
        towers[str(channels)] = nn.Sequential(*layers)
    return towers


def num_groups(channels: int) -> int:
    """Return the number of groups for GroupNorm: the largest possible power of two up to MOST_GROUPS.

    Every group has the same number of channels, at least MIN_GROUP_CHANNELS if there is more than one group."""
    groups = math.gcd(channels, MOST_GROUPS)
    while groups > 1 and channels // groups < MIN_GROUP_CHANNELS:
        groups //= 2
    return groups


@torch.no_grad()
def init_heads(
    box_head: nn.ModuleList,
    class_head: nn.ModuleList,
    towers: Iterable[nn.ModuleDict],
    num_classes: int,
    score_function: ScoreFunction,
) -> None:
    """Initialise the heads to predict few objects: at an anchor, the probability is about FOREGROUND_PRIOR.

    Otherwise, if the trunk has random weights, the loss never falls below loss.constant_predictor_loss. As in
    RetinaNet (arXiv 1708.02002, sections 3.3 and 4.1), weights of the last convolutions are drawn from N(0, 0.01^2) and
    biases are zero. With sigmoid scores, the class biases b solve 1 / (1 + e^-b) = FOREGROUND_PRIOR. With softmax
    scores, only the background bias is not zero; it solves e^b / (e^b + num_classes) = 1 - FOREGROUND_PRIOR.
    Convolutions of the towers are initialised as in arXiv 1502.01852, because weights from N(0, 0.01^2) are small
    compared with the steps of Adam."""
    for convolution in [*box_head, *class_head]:
        nn.init.normal_(convolution.weight, std=0.01)
        nn.init.zeros_(convolution.bias)
    for module in (module for each in towers for module in each.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for convolution in class_head:
        if score_function == "softmax":
            background_bias = math.log(num_classes * (1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR)
            convolution.bias[:: num_classes + 1] = background_bias
        else:
            convolution.bias.fill_(-math.log((1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR))


def predict_rows(maps: Sequence[Tensor], towers: nn.ModuleDict, head: nn.ModuleList, outputs_per_box: int) -> Tensor:
    """Apply towers and head to all maps (B, C, H, W).

    Returns one row per anchor, in the order of default_boxes: (B, A, outputs_per_box)."""
    rows = []
    for x, last in zip(maps, head, strict=True):
        if towers:
            x = x + towers[str(x.shape[1])](x)
        output = last(x)  # (B, boxes * outputs, H, W)
        rows.append(output.permute(0, 2, 3, 1).reshape(x.shape[0], -1, outputs_per_box))  # (B, H * W * boxes, outputs)
    return torch.cat(rows, dim=1)


def tower_depth(weights: Mapping[str, Tensor]) -> int:
    """Return the number of convolutions in each tower of a detector with these weights."""
    names = [name.split(".") for name, weight in weights.items() if name.startswith("box_towers.") and weight.ndim == 4]
    return len(names) // max(1, len({channels for _, channels, *_ in names}))
