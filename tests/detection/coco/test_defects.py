"""detection/coco/defects.py: what is wrong with the records of an annotation file, and with its boxes as a whole."""

import json

import numpy as np
import pytest

from detection.coco.annotations import survey_coco
from detection.coco.defects import what_boxes_are

NAN, INFINITY = float("nan"), float("inf")
TEXT = "it is text: write it without quotes"


@pytest.fixture
def defects(folder):
    """Write annotations beside the images of `folder`; returns their defects."""

    def defects(annotations):
        (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
        return survey_coco(folder / "annotations.json", folder / "images").defects

    return defects


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("categories", {"id": None}, "categories[1] (id None): id None, expected a whole number"),
        ("categories", {"id": 7}, "categories[1] (id 7): id 7 is that of categories[0], too"),
        ("categories", {"id": "7"}, TEXT),
        ("categories", {"name": "dog"}, "name 'dog' is that of categories[0], too"),
        ("categories", {"name": 5}, "name 5, expected text"),
        ("categories", {"name": "half \ud83d"}, "name 'half \\ud83d', expected text"),
        ("images", {"id": 50}, "images[1] (id 50): id 50 is that of images[0], too"),
        ("images", {"width": 0}, "images[1] (id 20): width 0, expected a whole number above 0"),
        ("images", {"height": 30.5}, "height 30.5, expected a whole number"),
        ("images", {"file_name": 7}, "file_name 7, expected text"),
        ("images", {"file_name": "caf\udce9.png"}, "file_name 'caf\\udce9.png', expected text"),
        ("images", {"file_name": "../a.json"}, "images[1] (id 20): file_name '../a.json' leads out"),
        ("images", {"file_name": "/etc/passwd"}, "leads out"),
        ("annotations", {"id": 1}, "annotations[1] (id 1): id 1 is that of annotations[0], too"),
        ("annotations", {"image_id": 99}, "annotations[1] (id 2): image_id 99: no such image"),
        ("annotations", {"image_id": "20"}, f"image_id '20', expected a whole number from 0 to 2 ** 53; {TEXT}"),
        ("annotations", {"category_id": 0}, "annotations[1] (id 2): category_id 0: no such category"),
        ("annotations", {"category_id": "3"}, TEXT),
        ("annotations", {"bbox": [0, 0, -1, 5]}, "annotations[1] (id 2): bbox [0, 0, -1, 5], expected [x, y, width"),
        ("annotations", {"bbox": [NAN, 0, 1, 5]}, "bbox [nan, 0, 1, 5], expected"),
        ("annotations", {"bbox": [0, 0, INFINITY, 5]}, "bbox [0, 0, inf, 5], expected"),
        ("annotations", {"bbox": [0, 0, 10**400, 5]}, "bbox [0, 0, 1000"),
        ("annotations", {"bbox": [0, 0, 5]}, "bbox [0, 0, 5], expected"),
        ("annotations", {"bbox": None}, "bbox None, expected"),
        ("annotations", {"bbox": [40, 0, 5, 5]}, "bbox [40, 0, 5, 5] lies outside image 50 of 40 x 30 pixels"),
        ("annotations", {"bbox": [-9, 0, 5, 5]}, "lies outside"),
        ("annotations", {"iscrowd": 2}, "iscrowd 2, expected 0 or 1"),
        ("annotations", {"area": -5}, "area -5, expected 0 to 1e+10 square pixels"),
        ("annotations", {"area": NAN}, "area nan, expected 0 to 1e+10 square pixels"),
    ],
)
def test_a_bad_value_is_named_with_its_record(defects, content, name, change, message):
    content[name][1] |= change
    assert message in str(defects(content)[0])


# ---- the boxes of a file as a whole -------------------------------------------------------------------------------


def test_boxes_as_fractions_are_one_defect_that_names_the_cure(defects, content):
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.5, 0.25]
    (defect,) = defects(content)
    assert defect.record == ""
    for part in ("fractions of the image?", "in pixels", "multiply"):
        assert part in defect.what


def test_what_explains_the_defects_of_the_records_comes_first(defects, content):
    content["images"] = [image | {"width": 30, "height": 300} for image in content["images"]]
    content["annotations"] = [
        {"id": k, "image_id": 20, "category_id": 3, "bbox": [60 * k, 2, 50, 20]} for k in range(5)
    ]
    first, *others = defects(content)
    assert "width and height of the images swapped" in first.what
    assert ["lies outside image" in defect.what for defect in others] == [True] * 4


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
    far_over, small = boxes.copy(), boxes.copy()
    far_over[:60, 2:] *= 3
    small[:, 2:] = 2
    a_little_over = boxes * 0 + [10, 5, *SIZE]
    for each in (boxes, boxes[:0], np.zeros((3, 4)), far_over, small, a_little_over, as_corners(boxes[:3])):
        assert what(each) is None


def test_fractions_are_recognised(boxes):
    fractions = boxes / np.tile(SIZE, 2)
    among_empty = fractions.copy()
    among_empty[50:] = 0
    for spoiled in (fractions, fractions[:1], among_empty, as_centres(fractions), as_corners(fractions)):
        assert "are these fractions" in what(spoiled)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [(as_corners, ["[x1, y1, x2, y2]", "Subtract"]), (as_centres, ["[cx, cy, width, height]", "half the width"])],
)
def test_corners_centres_and_swapped_sides_are_recognised(boxes, spoil, parts):
    for part in parts:
        assert part in what(spoil(boxes))
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
