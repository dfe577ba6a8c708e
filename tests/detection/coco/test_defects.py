"""detection/coco/defects.py: invalid records, and boxes in a format other than COCO's."""

import json

import numpy as np
import pytest

from detection.coco.annotations import survey_coco
from detection.coco.defects import diagnose_boxes

NAN, INFINITY = float("nan"), float("inf")
TEXT = "write it without quotes"


@pytest.fixture
def defects(folder):
    """Return a function that writes annotations next to the images of `folder` and returns their defects."""

    def defects(annotations):
        (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
        return survey_coco(folder / "annotations.json", folder / "images").defects

    return defects


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("categories", {"id": None}, "categories[1] (id None): id is None, expected an integer"),
        ("categories", {"id": 7}, "categories[1] (id 7): duplicate id 7: already used by categories[0]"),
        ("categories", {"id": "7"}, TEXT),
        ("categories", {"name": "dog"}, "duplicate name 'dog': already used by categories[0]"),
        ("categories", {"name": 5}, "name is 5, expected non-empty text"),
        ("categories", {"name": "half \ud83d"}, "name is 'half \\ud83d', expected non-empty text in valid Unicode"),
        ("images", {"id": 50}, "images[1] (id 50): duplicate id 50: already used by images[0]"),
        ("images", {"width": 0}, "images[1] (id 20): width is 0, expected an integer from 1"),
        ("images", {"height": 30.5}, "height is 30.5, expected an integer"),
        ("images", {"file_name": 7}, "file_name is 7, expected non-empty text"),
        ("images", {"file_name": "caf\udce9.png"}, "file_name is 'caf\\udce9.png', expected"),
        ("images", {"file_name": "../a.json"}, "images[1] (id 20): file_name is '../a.json', expected a path"),
        ("images", {"file_name": "/etc/passwd"}, "without .."),
        ("annotations", {"id": 1}, "annotations[1] (id 1): duplicate id 1: already used by annotations[0]"),
        ("annotations", {"image_id": 99}, "annotations[1] (id 2): image_id 99: no such image"),
        ("annotations", {"image_id": "20"}, "image_id is '20', expected an integer from 0 to 2**53 - 1; this is text"),
        ("annotations", {"category_id": 0}, "annotations[1] (id 2): category_id 0: no such category"),
        ("annotations", {"category_id": "3"}, TEXT),
        ("annotations", {"bbox": [0, 0, -1, 5]}, "annotations[1] (id 2): bbox is [0, 0, -1, 5], expected [x, y, width"),
        ("annotations", {"bbox": [NAN, 0, 1, 5]}, "bbox is [nan, 0, 1, 5], expected"),
        ("annotations", {"bbox": [0, 0, INFINITY, 5]}, "bbox is [0, 0, inf, 5], expected"),
        ("annotations", {"bbox": [0, 0, 10**400, 5]}, "bbox is [0, 0, 1000"),
        ("annotations", {"bbox": [0, 0, 5]}, "bbox is [0, 0, 5], expected"),
        ("annotations", {"bbox": None}, "bbox is None, expected"),
        ("annotations", {"bbox": [40, 0, 5, 5]}, "bbox [40, 0, 5, 5] is outside image 50 (40 x 30 pixels)"),
        ("annotations", {"bbox": [-9, 0, 5, 5]}, "is outside"),
        ("annotations", {"iscrowd": 2}, "iscrowd is 2, expected 0 or 1"),
        ("annotations", {"area": -5}, "area is -5, expected 0 to 1e+10 square pixels"),
        ("annotations", {"area": NAN}, "area is nan, expected 0 to 1e+10 square pixels"),
    ],
)
def test_an_invalid_value_is_reported_with_its_record(defects, content, name, change, message):
    content[name][1] |= change
    assert message in str(defects(content)[0])


# ---- the format of all boxes of a file ----------------------------------------------------------------------------


def test_boxes_as_fractions_are_one_defect_with_the_cure(defects, content):
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.5, 0.25]
    (defect,) = defects(content)
    assert defect.record == ""
    for part in ("fractions", "in pixels", "multiply"):
        assert part in defect.what


def test_the_defect_that_explains_all_records_comes_first(defects, content):
    content["images"] = [image | {"width": 30, "height": 300} for image in content["images"]]
    content["annotations"] = [
        {"id": k, "image_id": 20, "category_id": 3, "bbox": [60 * k, 2, 50, 20]} for k in range(5)
    ]
    first, *others = defects(content)
    assert "swapped" in first.what
    assert ["is outside image" in defect.what for defect in others] == [True] * 4


SIZE = np.array([640.0, 360.0])


@pytest.fixture
def boxes():
    """Return 200 boxes [x, y, width, height] of various sizes within an image of 640 x 360 pixels."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.02, 0.6, (200, 2)) * SIZE
    return np.concatenate([rng.uniform(0, 1, (200, 2)) * (SIZE - sides), sides], axis=1)


def as_corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def as_centres(boxes):
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def diagnose(boxes, size=SIZE):
    return diagnose_boxes(boxes, np.tile(size, (len(boxes), 1)))


def test_no_defect_is_reported_for_correct_boxes(boxes):
    far_over, small = boxes.copy(), boxes.copy()
    far_over[:60, 2:] *= 3
    small[:, 2:] = 2
    a_little_over = boxes * 0 + [10, 5, *SIZE]
    for each in (boxes, boxes[:0], np.zeros((3, 4)), far_over, small, a_little_over, as_corners(boxes[:3])):
        assert diagnose(each) is None


def test_fractions_are_recognised(boxes):
    fractions = boxes / np.tile(SIZE, 2)
    among_empty = fractions.copy()
    among_empty[50:] = 0
    for wrong in (fractions, fractions[:1], among_empty, as_centres(fractions), as_corners(fractions)):
        assert "fractions" in diagnose(wrong)


@pytest.mark.parametrize(
    ("convert", "parts"),
    [(as_corners, ["[x1, y1, x2, y2]", "Subtract"]), (as_centres, ["[cx, cy, width, height]", "half the width"])],
)
def test_corners_centres_and_swapped_sides_are_recognised(boxes, convert, parts):
    for part in parts:
        assert part in diagnose(convert(boxes))
    assert "swapped" in diagnose(boxes, SIZE[::-1])


@pytest.mark.parametrize("name", ["coco80", "coco_person", "bccd", "cards", "raccoon"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_box_format_of_real_data_is_recognised(shared_data, name, split):
    root = shared_data / name
    survey = survey_coco(root / f"annotations/instances_{split}.json", root / f"images/{split}")
    assert not survey.defects
    for convert, part in ((as_corners, "[x1, y1, x2, y2]"), (lambda boxes: boxes / 1000, "fractions")):
        boxes_xyxy, sizes = survey.coco.boxes_xyxy, [[image.width, image.height] for image in survey.coco.images]
        boxes = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
        assert part in diagnose_boxes(convert(boxes), np.repeat(sizes, np.diff(survey.coco.first_object), axis=0))
