"""detection/coco/plausibility.py: what the boxes of a file are, if they are not what they should be."""

import numpy as np
import pytest

from detection.coco.annotations import survey_coco
from detection.coco.plausibility import what_boxes_are

SIZE = np.array([640.0, 360.0])


@pytest.fixture
def boxes():
    """200 boxes within images of 640 x 360 pixels, of all sizes and in all places."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.02, 0.6, (200, 2)) * SIZE
    return np.concatenate([rng.uniform(0, 1, (200, 2)) * (SIZE - sides), sides], axis=1)


def as_corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def as_centres(boxes):
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def what(boxes, size=SIZE):
    return what_boxes_are(boxes, np.tile(size, (len(boxes), 1)))


def test_correct_boxes_are_not_suspected(boxes):
    assert what(boxes) is None
    assert what(boxes[:0]) is None
    assert what(np.zeros((3, 4))) is None


def test_large_objects_that_reach_a_little_over_the_edge_are_not_suspected(boxes):
    assert what(boxes * 0 + [10, 5, *SIZE]) is None


def test_fractions_are_recognised(boxes):
    fractions = boxes / np.tile(SIZE, 2)
    for spoiled in (fractions, fractions[:1], as_centres(fractions), as_corners(fractions)):
        assert "are these fractions" in what(spoiled)


def test_small_objects_are_no_fractions(boxes):
    boxes[:, 2:] = 2
    assert what(boxes) is None


def test_corners_are_recognised(boxes):
    found = what(as_corners(boxes))
    assert "[x1, y1, x2, y2]" in found
    assert "Subtract" in found


def test_centres_are_recognised(boxes):
    found = what(as_centres(boxes))
    assert "[cx, cy, width, height]" in found
    assert "half the width" in found


def test_a_few_boxes_prove_nothing(boxes):
    assert what(as_corners(boxes[:3])) is None


def test_swapped_sides_are_recognised(boxes):
    assert "swapped" in what(boxes, SIZE[::-1])


@pytest.mark.parametrize("name", ["coco80", "coco_person", "bccd", "cards", "raccoon"])
@pytest.mark.parametrize("half", ["train", "val"])
def test_real_data_is_not_suspected(shared_data, name, half):
    root = shared_data / name
    survey = survey_coco(root / f"annotations/instances_{half}.json", root / f"images/{half}")
    assert not survey.defects
    for spoil, part in ((as_corners, "[x1, y1, x2, y2]"), (lambda boxes: boxes / 1000, "fractions")):
        boxes_xyxy, sizes = survey.coco.boxes_xyxy, [[image.width, image.height] for image in survey.coco.images]
        boxes = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
        assert part in what_boxes_are(spoil(boxes), np.repeat(sizes, np.diff(survey.coco.first_object), axis=0))
