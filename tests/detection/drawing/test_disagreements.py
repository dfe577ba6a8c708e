"""detection/drawing/disagreements.py: pictures of the detections of several detectors."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from detection.drawing.disagreements import SIDE, draw_side_by_side


@pytest.fixture
def paths(folder, content):
    """Return the annotation file and two results files: one good box on image 20, and many."""
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(content))
    boxes = [([20.0, 5.0, 10.0, 10.0], 0.2), ([2.0, 15.0, 10.0, 10.0], 0.9), ([12.0, 1.0, 6.0, 9.0], 0.1)]
    found = [{"image_id": 20, "category_id": 7, "bbox": box, "score": score} for box, score in boxes]
    (folder / "one.json").write_text(json.dumps(found[:1]))
    (folder / "many.json").write_text(json.dumps(found))
    return annotations, [folder / "one.json", folder / "many.json"]


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def differ(first: bytes, second: bytes, box_xywh) -> bool:
    """Return whether two pictures differ on the left edge of a box, away from labels."""
    x, y, _, height = (round(value * SIDE / 40) for value in box_xywh)
    edge = np.s_[y + height // 2 : y + height - 10, x : x + 2]
    return np.abs(pixels(first)[edge] - pixels(second)[edge]).mean() > 40


def test_as_many_of_the_best_detections_are_drawn_as_there_are_objects(folder, paths):
    annotations, detections = paths
    (none,) = draw_side_by_side(annotations, folder / "images", [50], detections)
    (found,) = draw_side_by_side(annotations, folder / "images", [20], detections)
    assert (none.file_name, none.num_objects) == ("a.png", 1)
    assert (found.file_name, found.num_objects) == ("more/b.png", 2)
    assert max(Image.open(io.BytesIO(found.truth)).size) == SIDE
    one, many = found.detected
    assert differ(one, many, [2, 15, 10, 10])  # only the second detector found it
    assert not differ(one, many, [20, 5, 10, 10])  # both did
    assert not differ(one, many, [12, 1, 6, 9])  # the third best of two objects
    assert none.detected[0] == none.detected[1]  # no detections on this image
