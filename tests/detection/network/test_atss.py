import shutil
import statistics
from fractions import Fraction

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from detection.network.anchors import ANCHOR_SCALES, BOXES_PER_CELL, default_boxes
from detection.network.assignment.atss import match_atss
from tests.detection.network import peers
from tests.detection.network.peers import OperatorCount, random_objects

GRIDS = {"small": peers.GRIDS, "SSD300": [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]}
ANCHORS = {name: default_boxes(grids, ANCHOR_SCALES["ssd_coco"]) for name, grids in GRIDS.items()}
CELLS = {name: [rows * columns for rows, columns in grids] for name, grids in GRIDS.items()}


def brute_force(boxes_xyxy, labels, grids, anchors_cxcywh):
    """Match one image with plain loops over levels, cells and objects, and exact distances."""
    anchors_xyxy = box_convert(anchors_cxcywh, "cxcywh", "xyxy")
    best_iou, matched = [0.0] * len(anchors_xyxy), [-1] * len(anchors_xyxy)
    for index, ((left, top, right, bottom), label) in enumerate(zip(boxes_xyxy.tolist(), labels.tolist(), strict=True)):
        if label == 0 or right <= left or bottom <= top:
            continue
        x, y = (Fraction(left) + Fraction(right)) / 2, (Fraction(top) + Fraction(bottom)) / 2
        iou = box_iou(boxes_xyxy[index : index + 1], anchors_xyxy)[0].tolist()
        candidates, first = [], 0
        for (rows, columns), per_cell in zip(grids, BOXES_PER_CELL, strict=True):
            cells = []
            for row in range(rows):
                for column in range(columns):
                    center = Fraction(2 * column + 1, 2 * columns), Fraction(2 * row + 1, 2 * rows)
                    cells.append(((center[0] - x) ** 2 + (center[1] - y) ** 2, row * columns + column, center))
            for _, cell, center in sorted(cells)[:9]:
                candidates += [(first + cell * per_cell + box, center) for box in range(per_cell)]
            first += rows * columns * per_cell
        candidate_iou = [iou[anchor] for anchor, _ in candidates]
        threshold = statistics.mean(candidate_iou) + statistics.stdev(candidate_iou)
        for anchor, (center_x, center_y) in candidates:
            is_inside = left < center_x < right and top < center_y < bottom
            if iou[anchor] >= threshold and is_inside and iou[anchor] > best_iou[anchor]:
                best_iou[anchor], matched[anchor] = iou[anchor], index
    return matched


def random_batch(seed, batch_size, max_objects, quantum=None):
    """Return zero-padded boxes and labels. Some objects repeat the previous one, are tiny, or have no area."""
    generator = torch.Generator().manual_seed(seed)
    boxes_xyxy, labels = random_objects(generator, batch_size, max_objects, quantum)
    kind = torch.randint(0, 8, labels.shape, generator=generator)
    for index in range(1, max_objects):
        repeats = (kind[:, index] == 0) & (labels[:, index] > 0)
        boxes_xyxy[repeats, index] = boxes_xyxy[repeats, index - 1]
    boxes_xyxy[kind == 1, 2] = boxes_xyxy[kind == 1, 0]
    boxes_xyxy[kind == 2, 2:] = boxes_xyxy[kind == 2, :2] + 1 / 64
    return boxes_xyxy, labels


@pytest.mark.parametrize("quantum", [None, 1 / 4, 1 / 16], ids=["random", "many ties", "some ties"])
@pytest.mark.parametrize("seed", range(12))
def test_matching_equals_brute_force(seed, quantum):
    grids, anchors = GRIDS["small"], ANCHORS["small"]
    boxes_xyxy, labels = random_batch(seed, 4, 1 + seed, quantum)
    expected = [brute_force(*image, grids, anchors) for image in zip(boxes_xyxy, labels, strict=True)]
    assert match_atss(boxes_xyxy, labels, anchors, CELLS["small"]).tolist() == expected


@pytest.mark.parametrize("seed", range(2))
def test_matching_of_default_boxes_of_ssd300_equals_brute_force(seed):
    grids, anchors = GRIDS["SSD300"], ANCHORS["SSD300"]
    boxes_xyxy, labels = random_batch(seed, 2, 6)
    expected = [brute_force(*image, grids, anchors) for image in zip(boxes_xyxy, labels, strict=True)]
    assert match_atss(boxes_xyxy, labels, anchors, CELLS["SSD300"]).tolist() == expected


# Examples with one level of 4 x 4 cells and four boxes per cell. Centres of cells are 0.125, 0.375, 0.625 and 0.875.
ONE_LEVEL = [16, 0, 0, 0, 0, 0]


def match_one_level(anchors_xyxy, boxes_xyxy):
    """Match objects to the given anchors {cell: box}. The remaining anchors are far away from all objects."""
    anchors = torch.tensor([5.0, 5.0, 6.0, 6.0]).repeat(64, 1)
    for cell, box in anchors_xyxy.items():
        anchors[4 * cell] = torch.tensor(box)
    labels = torch.ones(1, len(boxes_xyxy), dtype=torch.int64)
    matched = match_atss(torch.tensor([boxes_xyxy]), labels, box_convert(anchors, "xyxy", "cxcywh"), ONE_LEVEL)[0]
    return {anchor // 4: matched[anchor].item() for anchor in range(64) if matched[anchor] >= 0}


def test_candidates_are_the_boxes_of_the_nine_nearest_cells():
    # Distance from the centre (0.5, 0.5): cells 5, 6, 9, 10 are nearest. Cells 1, 2, 4, 7, 8, 11, 13, 14 are equally
    # distant, so the first five of them are candidates too. All cells are inside the object.
    image = [0.0, 0.0, 1.0, 1.0]
    assert match_one_level({8: image, 11: image}, [image]) == {8: 0}


@pytest.mark.parametrize(("iou", "is_positive"), [(0.201, False), (0.203, True)])
def test_threshold_is_mean_plus_unbiased_standard_deviation(iou, is_positive):
    # The 36 candidates have IoU 1, b and 34 times 0. The mean is (1 + b) / 36, the variance is
    # (1 + b^2 - (1 + b)^2 / 36) / 35. For b = 0.201, the threshold is 0.0334 + 0.1691 = 0.2024; with a division by 36,
    # it would be 0.2001. For b = 0.203, it is 0.0334 + 0.1691 = 0.2025.
    box = [0.25, 0.25, 0.75, 0.75]
    part = [0.25, 0.25, 0.75, 0.25 + 0.5 * iou]
    assert match_one_level({5: box, 6: part}, [box]) == {5: 0, **({6: 0} if is_positive else {})}


def test_the_centre_of_the_cell_must_be_inside_the_object():
    # The centres of cells 5 and 6 are inside. Cell 4's centre (0.125, 0.375) is on the edge, cell 1's is above.
    box = [0.125, 0.25, 0.875, 0.75]
    assert match_one_level(dict.fromkeys([1, 4, 5, 6], box), [box]) == {5: 0, 6: 0}


def test_an_anchor_that_is_positive_for_several_objects_matches_the_highest_iou():
    box, larger = [0.25, 0.25, 0.75, 0.75], [0.25, 0.25, 0.75, 0.8125]
    assert match_one_level({5: larger}, [box]) == {5: 0}
    assert match_one_level({5: larger}, [box, larger]) == {5: 1}
    assert match_one_level({5: larger}, [larger, box]) == {5: 0}
    assert match_one_level({5: larger}, [box, box, box]) == {5: 0}


def test_small_object_at_the_border_matches_although_clipping_moves_the_centres_of_anchors_outside():
    boxes_xyxy = torch.tensor([[[0.0, 0.0, 0.03, 0.03]]])
    matched = match_atss(boxes_xyxy, torch.tensor([[1]]), ANCHORS["SSD300"], CELLS["SSD300"])[0]
    assert (ANCHORS["SSD300"][matched >= 0, :2] > 0.03).all(dim=1).any()


@pytest.mark.parametrize(
    ("box", "label"),
    [
        ([0.5, 0.5, 0.5, 0.9], 1),
        ([0.9, 0.5, 0.5, 0.9], 1),
        ([0.0, 0.0, 1.0, 1.0], 0),
        ([0.495, 0.495, 0.505, 0.505], 1),
    ],
    ids=["flat", "reversed", "padding", "between the centres of cells"],
)
def test_objects_without_positives_match_nothing(box, label):
    anchors, cells = ANCHORS["small"], CELLS["small"]
    anchors, cells = anchors[:-8], [*cells[:4], 0, 0]  # without the levels that have a single cell
    boxes_xyxy = torch.tensor([[[0.1, 0.1, 0.5, 0.5], box]])
    assert set(match_atss(boxes_xyxy, torch.tensor([[1, label]]), anchors, cells).unique().tolist()) == {-1, 0}
    assert (match_atss(boxes_xyxy[:, 1:], torch.tensor([[label]]), anchors, cells) == -1).all()


def test_images_are_independent():
    anchors, cells = ANCHORS["SSD300"], CELLS["SSD300"]
    boxes_xyxy, labels = random_batch(3, 7, 12)
    matched = match_atss(boxes_xyxy, labels, anchors, cells)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    assert torch.equal(match_atss(boxes_xyxy[order], labels[order], anchors, cells), matched[order])
    for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
        assert torch.equal(match_atss(boxes_xyxy[part], labels[part], anchors, cells), matched[part])


def test_number_of_gpu_operators_is_independent_of_batch_size_and_none_synchronises():
    # A meta tensor has no values, so any .item(), nonzero or boolean selection would raise.
    counts = []
    for batch_size in (2, 32):
        boxes_xyxy, labels = random_batch(4, batch_size, 7)
        with OperatorCount() as operators:
            match_atss(boxes_xyxy.to("meta"), labels.to("meta"), ANCHORS["small"].to("meta"), CELLS["small"])
        counts.append(operators.count)
    assert counts[0] == counts[1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.usefixtures("compiler_cache")
def test_compiled_matching_equals_eager_matching_at_any_padding():
    compiled = torch.compile(match_atss, dynamic=True, fullgraph=True)
    for max_objects in (7, 12):
        boxes_xyxy, labels = random_batch(6, 5, max_objects)
        arguments = (boxes_xyxy, labels, ANCHORS["small"], CELLS["small"])
        assert torch.equal(compiled(*arguments), match_atss(*arguments))
