"""detection/shapes.py: COCO's format, the same bytes for the same seed, boxes that fit the pixels."""

import contextlib
import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detection import sample
from detection.shapes import SHAPES, generate


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Draw 120 images, enough to contain crowds, empty images and occlusion."""
    root = generate(tmp_path_factory.mktemp("drawn"), num_train=120, num_val=1, image_size=64)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(root / "annotations" / "instances_train.json")
    coco.root = root
    return coco


def test_bytes_depend_on_the_seed_and_a_larger_set_begins_with_the_images_of_a_smaller_one(tmp_path):
    small = contents(generate(tmp_path / "small", num_train=2, num_val=1))
    assert contents(generate(tmp_path / "again", num_train=2, num_val=1)) == small
    large = contents(generate(tmp_path / "large", num_train=4, num_val=1))
    images = {name: data for name, data in small.items() if name.endswith(".jpg")}
    assert len(set(images.values())) == 3  # training and validation images differ, too
    assert images.items() <= large.items()


def test_a_complete_set_is_drawn_again_only_if_seed_or_style_change(tmp_path):
    size = {"num_train": 2, "num_val": 1, "image_size": 64}
    before = contents(generate(tmp_path / "set", **size))
    image = tmp_path / "set/images/train/000001.jpg"
    image.write_bytes(b"mine")
    generate(tmp_path / "set", **size)
    assert image.read_bytes() == b"mine"
    for number, change in enumerate(({"seed": 1}, {"style": "easy"})):
        fresh = contents(generate(tmp_path / f"fresh_{number}", **size, **change))
        assert contents(generate(tmp_path / "set", **size, **change)) == fresh != before


@pytest.mark.parametrize("lost", ["annotations/instances_train.json", "images/train/000001.jpg"])
def test_an_incomplete_set_is_drawn_again(tmp_path, lost):
    generate(tmp_path, num_train=2, num_val=1)
    before = contents(tmp_path)
    (tmp_path / lost).unlink()
    generate(tmp_path, num_train=2, num_val=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ['{"info": {"description": "COCO 2017"}}', "not json"])
def test_annotations_of_a_different_program_are_not_overwritten(tmp_path, text):
    path = tmp_path / "annotations/instances_train.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(FileExistsError, match=r"instances_train\.json"):
        generate(tmp_path, num_train=1, num_val=1)
    assert path.read_text() == text


@pytest.mark.parametrize(("field", "number"), [("num_train", 0), ("seed", -1), ("image_size", 31)])
def test_a_number_out_of_range_is_refused_and_nothing_is_drawn(tmp_path, field, number):
    with pytest.raises(ValueError, match=f"{field} {number}: .*{number + 1} or more"):
        generate(tmp_path / "set", **{field: number})
    assert not (tmp_path / "set").exists()


def test_the_command_draws_the_set_and_prints_the_numbers_of_images(tmp_path, run_in_process):
    code, out, _ = run_in_process(sample, tmp_path, "--style", "easy", "--num-train", 2, "--num-val", 1)
    assert code == 0
    assert "2 training and 1 validation images" in out
    content = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    assert [(image["id"], image["width"]) for image in content["images"]] == [(1, 96), (4, 96)]


def test_the_set_has_every_feature_of_coco(coco):
    images_with_objects = {annotation["image_id"] for annotation in coco.anns.values()}
    kinds = {type(a["segmentation"]) for a in coco.anns.values() if not a["iscrowd"]}
    assert coco.dataset.keys() == {"info", "licenses", "images", "annotations", "categories"}
    assert 0 < len(coco.imgs) - len(images_with_objects) < 20
    assert 0 < sum(a["iscrowd"] for a in coco.anns.values()) < 20
    assert kinds == {list, dict}  # fully visible and partly hidden
    assert {a["category_id"] for a in coco.anns.values()} == {shape.category_id for shape in SHAPES.values()}
    assert np.diff(sorted(coco.imgs)).min() > 1
    assert max(coco.cats) > len(coco.cats)
    for record in coco.imgs.values():
        with Image.open(coco.root / "images/train" / record["file_name"]) as image:
            assert (image.width, image.height, image.mode) == (record["width"], record["height"], "RGB")


def test_pycocotools_reads_masks_that_agree_with_boxes_and_areas(coco):
    errors = []
    for annotation in coco.anns.values():
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0
        assert min(width, height) > 0
        assert max(x + width, y + height) <= 64
        rle = coco.annToRLE(annotation)
        mask_box, box = (np.array([x, y, x + w, y + h]) for x, y, w, h in (coco_mask.toBbox(rle), annotation["bbox"]))
        outside = np.concatenate([box[:2] - mask_box[:2], mask_box[2:] - box[2:]])
        assert outside.max() <= 1
        errors.append(-outside.min())
        assert coco_mask.area(rle) == pytest.approx(annotation["area"], rel=0.15, abs=8)
    assert np.mean(np.array(errors) < 3) > 0.95  # the rest: slivers and tips thinner than half a pixel


def test_the_easy_style_has_three_classes_and_few_large_shapes(tmp_path):
    root = generate(tmp_path, num_train=40, num_val=1, image_size=64, style="easy")
    content = json.loads((root / "annotations/instances_train.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["triangle", "ring", "cross"]
    per_image = Counter(annotation["image_id"] for annotation in content["annotations"])
    assert max(per_image.values()) == 3
    assert not any(annotation["iscrowd"] for annotation in content["annotations"])
    visible = [a["bbox"] for a in content["annotations"] if isinstance(a["segmentation"], list)]
    assert min(max(width, height) for _, _, width, height in visible) > 0.2 * 64
