"""detection/coco/warnings.py: the reported highest possible mAP equals pycocotools' score of perfect detections."""

import json

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.coco.annotations import read_coco
from detection.coco.warnings import ceiling_warning, highest_map

EMPTY = (5, 1, [0, 0, 0, 0], {})


def grid(image_id, category_id, count):
    return [(image_id, category_id, [k % 20 * 30, k // 20 * 30, 20, 25], {}) for k in range(count)]


@pytest.fixture
def read(tmp_path):
    """Return a function that reads annotations (image_id, category_id, bbox, other fields) of two 640 x 480 images."""

    def read(*annotations):
        (tmp_path / "images").mkdir()
        for image_id in (5, 9):
            Image.new("L", (640, 480)).save(tmp_path / f"images/{image_id}.png")
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 640, "height": 480} for i in (5, 9)],
            "categories": [{"id": 1, "name": "egg"}, {"id": 4, "name": "hen"}],
            "annotations": [
                {"id": k, "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": bbox[2] * bbox[3]}
                | {"iscrowd": 0}
                | further
                for k, (image_id, category_id, bbox, further) in enumerate(annotations, start=1)
            ],
        }
        (tmp_path / "val.json").write_text(json.dumps(content))
        return read_coco(tmp_path / "val.json", tmp_path / "images")

    return read


def by_pycocotools(coco):
    """Return pycocotools' mAP of perfect detections, clipped to their images, for all boxes that have an area."""
    truth = COCO(str(coco.annotations_path))
    found = []
    for annotation in truth.anns.values():
        x, y, width, height = annotation["bbox"]
        if width and height and not annotation["iscrowd"]:
            ids = {key: annotation[key] for key in ("image_id", "category_id")}
            found.append(ids | {"bbox": [x, y, min(width, 640 - x), min(height, 480 - y)], "score": 1.0})
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize(
    ("annotations", "parts"),
    [
        ([*grid(5, 1, 6), EMPTY, EMPTY], ["2 boxes without area count as missed"]),
        ([*grid(5, 1, 6), (9, 4, [10, 10, 0, 30], {})], ["1 box without area"]),
        ([*grid(5, 1, 150), *grid(9, 4, 7)], ["1 image has more than 100 objects of one class"]),
        ([*grid(5, 1, 150), *grid(9, 1, 101), EMPTY], ["2 images have more than 100 objects", "1 box without area"]),
        ([*grid(5, 1, 60), *grid(5, 4, 60), EMPTY, (9, 4, [0, 0, 90, 90], {"iscrowd": 1})], ["1 box without area"]),
        ([*grid(5, 1, 3), (9, 1, [600, 100, 60, 60], {})], ["1 box extends beyond its image"]),
    ],
    ids=["empty", "a class of empty boxes", "150 of a class", "both", "100 of two classes, a crowd", "beyond the edge"],
)
def test_the_highest_map_equals_that_of_pycocotools(read, annotations, parts):
    coco = read(*annotations)
    expected = by_pycocotools(coco)
    assert expected < 0.999
    assert highest_map(coco) == pytest.approx(expected, abs=1e-9)
    reasons, _, ending = ceiling_warning(coco).partition(": ")
    assert ending == f"mAP cannot exceed {expected:.3f}"
    assert len(reasons.split("; ")) == len(parts)
    for part in parts:
        assert part in reasons


@pytest.mark.parametrize(
    "annotations",
    [
        [],
        grid(5, 1, 100),
        [*grid(5, 1, 80), *grid(5, 4, 80)],
        [(5, 1, [0, 100, 641, 60], {}), *grid(9, 1, 3)],
        [*grid(5, 4, 2), *((image, cat, box, {"iscrowd": 1}) for image, cat, box, _ in grid(9, 4, 120))],
    ],
    ids=["no objects", "100 of a class", "160 of two", "a pixel beyond the edge", "120 crowds"],
)
def test_there_is_no_warning_if_map_can_reach_1(read, annotations):
    assert ceiling_warning(read(*annotations)) is None
