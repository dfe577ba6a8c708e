"""detection/network/anchor_scales.py: fitted scales have the highest recall, and the fast IoUs are exact."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert, box_iou

from detection.network import anchor_scales
from detection.network.anchor_scales import (
    best_ious,
    fit_scales,
    ious_of_sizes,
    sample_boxes,
    score,
)
from detection.network.anchors import ANCHOR_SCALES, MAX_SCALE, default_boxes

GRIDS = [(24, 24), (12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]
OBLONG_GRIDS = [(8, 6), (4, 3), (2, 3), (2, 1), (1, 2), (1, 1)]


def draw_boxes(count, low, high, max_ratio=1.5, seed=0):
    """Return boxes (count, 4) in the image, with square roots of areas from low to high, and varied aspect ratios."""
    rng = np.random.default_rng(seed)
    side, ratio = np.exp(rng.uniform(np.log([low, 1 / max_ratio]), np.log([high, max_ratio]), (count, 2))).T
    sizes = np.stack([side * ratio**0.5, side / ratio**0.5], axis=1).clip(max=1)
    corners = rng.random((count, 2)) * (1 - sizes)
    return torch.tensor(np.concatenate([corners, corners + sizes], axis=1), dtype=torch.float32)


OBJECTS = {
    "all sizes": draw_boxes(300, 0.02, 0.9, 3),
    "circuit board": draw_boxes(300, 0.01, 0.03),
    "one size": draw_boxes(200, 0.2, 0.25),
    "long": draw_boxes(200, 0.05, 0.3, 12),
    "large": draw_boxes(100, 0.6, 1),
    "one object": draw_boxes(1, 0.1, 0.2),
}


def exact_ious(boxes_xyxy, grid_sizes, scales):
    """Return the best IoU of each object, from the matrix of all IoUs."""
    anchors_xyxy = box_convert(default_boxes(grid_sizes, scales), "cxcywh", "xyxy")
    return box_iou(boxes_xyxy, anchors_xyxy).amax(dim=1)


def recall(boxes_xyxy, grid_sizes, scales, iou_threshold=0.5):
    return float((exact_ious(boxes_xyxy, grid_sizes, scales) >= iou_threshold).double().mean())


@pytest.mark.parametrize("grid_sizes", [GRIDS, OBLONG_GRIDS])
@pytest.mark.parametrize("scales", [*ANCHOR_SCALES.values(), (0.3, 0.7, 0.9, 1.1, 1.2, 1.3, 1.5)])
def test_best_ious_equal_those_of_torchvisions_iou_matrix(scales, grid_sizes):
    boxes_xyxy = torch.cat([*OBJECTS.values(), draw_boxes(2000, 0.005, 1, 20)])
    touching = boxes_xyxy.clone()  # moved to the edges of the image, where default boxes are clipped
    touching[:, 2:] -= touching[:, :2]
    touching[:, :2] = 0
    boxes_xyxy = torch.cat([boxes_xyxy, touching, 1 - touching[:, [2, 3, 0, 1]]])
    expected = exact_ious(boxes_xyxy, grid_sizes, scales)
    torch.testing.assert_close(best_ious(boxes_xyxy, grid_sizes, scales), expected, atol=2e-5, rtol=0)


def test_the_number_of_boxes_at_once_does_not_change_the_ious(monkeypatch):
    sizes = [(0.1, 0.2), (0.5, 0.5), (0.9, 0.3)]
    expected = ious_of_sizes(OBJECTS["all sizes"], (5, 4), sizes)
    monkeypatch.setattr(anchor_scales, "MAX_BOXES_AT_ONCE", 1)
    assert torch.equal(ious_of_sizes(OBJECTS["all sizes"], (5, 4), sizes), expected)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("iou_threshold", [0.5, 0.7])
def test_recall_is_at_least_that_of_every_preset(name, iou_threshold):
    scales = fit_scales(OBJECTS[name], GRIDS, iou_threshold)
    presets = [recall(OBJECTS[name], GRIDS, preset, iou_threshold) for preset in ANCHOR_SCALES.values()]
    assert recall(OBJECTS[name], GRIDS, scales, iou_threshold) >= max(presets)


@pytest.mark.parametrize("name", ["circuit board", "long"])
def test_recall_is_above_that_of_every_preset_if_no_preset_fits(name):
    scales = fit_scales(OBJECTS[name], GRIDS, 0.5)
    presets = [recall(OBJECTS[name], GRIDS, preset) for preset in ANCHOR_SCALES.values()]
    assert recall(OBJECTS[name], GRIDS, scales) > max(presets) + 0.05


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_the_best_of_all_scales_on_a_coarse_grid(monkeypatch, seed):
    coarse = [0.04, 0.07, 0.12, 0.2, 0.33, 0.45, 0.6, 0.75, 0.9, 1.1]
    monkeypatch.setattr(anchor_scales, "GRID", coarse)
    monkeypatch.setattr(anchor_scales, "ANCHOR_SCALES", {})
    monkeypatch.setattr(anchor_scales, "RANDOM_STARTS", 8)
    boxes_xyxy = draw_boxes(80, 0.03, 0.8, 4, seed)
    best = max(recall(boxes_xyxy, OBLONG_GRIDS, scales, 0.6) for scales in combinations(coarse, 7))
    assert recall(boxes_xyxy, OBLONG_GRIDS, fit_scales(boxes_xyxy, OBLONG_GRIDS, 0.6), 0.6) == best


@pytest.mark.parametrize("name", OBJECTS)
def test_scales_are_seven_increasing_numbers_that_a_config_can_hold(name):
    scales = fit_scales(OBJECTS[name], GRIDS, 0.5)
    assert len(scales) == 7
    assert list(scales) == sorted(set(scales))
    assert 0 < scales[0] < scales[-1] <= MAX_SCALE
    assert scales == tuple(round(scale, 4) for scale in scales)
    assert all(type(scale) is float for scale in scales)


def test_scales_depend_neither_on_the_order_of_the_objects_nor_on_random_numbers():
    boxes_xyxy = OBJECTS["all sizes"]
    torch.manual_seed(0)
    expected = fit_scales(boxes_xyxy, GRIDS, 0.5)
    shuffled = boxes_xyxy[torch.randperm(len(boxes_xyxy))]
    torch.manual_seed(1)
    assert fit_scales(shuffled, GRIDS, 0.5) == expected


def test_the_search_uses_a_sample_of_many_objects_and_the_presets_are_compared_on_a_larger_one(monkeypatch):
    monkeypatch.setattr(anchor_scales, "RANDOM_STARTS", 0)
    monkeypatch.setattr(anchor_scales, "MAX_FITTED", 1)
    monkeypatch.setattr(anchor_scales, "MAX_MEASURED", 250)
    boxes_xyxy = OBJECTS["all sizes"]
    scales = fit_scales(boxes_xyxy, GRIDS, 0.5)
    measured = sample_boxes(boxes_xyxy, 250)
    assert recall(measured, GRIDS, scales) >= max(recall(measured, GRIDS, s) for s in ANCHOR_SCALES.values())


def test_the_order_of_scores_is_by_recall_then_by_iou():
    rows = torch.tensor([[0.9, 0.49, 0.9], [0.5, 0.5, 0.5], [0.5, 0.6, 0.5], [0.9, 0.9, 0.9]])
    scores = score(rows, 0.5).tolist()
    assert scores == sorted(set(scores))


def test_of_the_scales_that_fit_every_object_those_with_the_highest_mean_iou_are_chosen():
    boxes_xyxy = OBJECTS["one size"]
    scales = fit_scales(boxes_xyxy, GRIDS, 0.5)
    shifted = [scale * factor for scale, factor in zip(scales, (1.05,) * 7, strict=True)]
    assert recall(boxes_xyxy, GRIDS, scales) == 1
    assert best_ious(boxes_xyxy, GRIDS, scales).mean() > best_ious(boxes_xyxy, GRIDS, shifted).mean()
