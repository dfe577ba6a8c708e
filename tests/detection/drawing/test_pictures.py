"""detection/drawing/pictures.py: layout and content of panels, and files that `is_ours` recognises."""

import numpy as np
import pytest
from PIL import Image

from detection.coco.annotations import read_split
from detection.drawing.boxes import Mark
from detection.drawing.pictures import LINE, Example, Panel, draw_detections, draw_examples, draw_panels, examples
from detection.task import DetectionConfig
from engine.charts import is_ours

GREEN, MAGENTA = (0.0, 1.0, 0.0), (1.0, 0.0, 1.0)


def example(height=128, width=128, truth=(), found=()):
    return Example(np.full((height, width, 3), 90, np.uint8), "image 7", truth, found)


def mark(*box_xyxy, colour=GREEN, label="cat"):
    return Mark(np.array(box_xyxy), colour, label)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_any_number_of_images_of_any_shape_is_drawn(tmp_path, count):
    shapes = [(128, 128), (427, 640), (640, 427), (64, 300), (300, 64)]
    draw_detections(tmp_path / "out.png", [example(*shape) for shape in shapes[:count]])
    drawn = pixels(tmp_path / "out.png")
    assert drawn.shape[1] >= 800
    assert (drawn.max(axis=2) - drawn.min(axis=2)).max() < 8  # grey, because there are no boxes
    assert is_ours(tmp_path / "out.png")


def test_examples_are_spread_over_the_data_set_with_objects_and_detections(sample_root):
    splits = {split: {"images": f"images/{split}", "annotations": f"annotations/instances_{split}.json"}
              for split in ("train", "val")}  # fmt: skip
    config = {"data": {"root": str(sample_root), **splits}, "train": {"epochs": 1, "batch_size": 1}}
    val = read_split(DetectionConfig.model_validate(config).data, "val")
    ids = [val.images[index].id for index in (0, 2, 5, 7)]
    found = [(ids[1], 10, 20, 30, 40, score, val.category_ids[1]) for score in (0.9, 0.5, 0.2)]
    drawn = examples(val, np.array(found))
    assert list(drawn) == list(map(str, ids))
    name = val.class_names[1]
    assert [mark.label for mark in drawn[str(ids[1])].detections] == [f"{name} 0.90", f"{name} 0.50"]
    assert drawn[str(ids[1])].detections[0].box_xyxy.tolist() == [10, 20, 40, 60]
    assert [len(each.truth) for each in drawn.values()] == [len(val.objects(index)[1]) for index in (0, 2, 5, 7)]


def test_the_colour_of_a_single_small_label_survives_the_palette(tmp_path):
    photo = np.random.default_rng(0).integers(0, (256, 200, 60), (400, 400, 3), dtype=np.uint8)  # without that colour
    sample = example(truth=[mark(50, 50, 60, 60, colour=MAGENTA)])._replace(image=photo)
    draw_detections(tmp_path / "out.png", [sample])
    distances = np.abs(pixels(tmp_path / "out.png") - (255, 0, 255)).max(axis=2)
    assert (distances < 40).sum() > 100


def test_dots_and_a_key_are_drawn(tmp_path):
    panel = Panel(np.zeros((100, 100, 3), np.uint8), "", [], dots_xy=np.array([[25, 50]]))
    draw_panels(tmp_path / "out.png", [panel] * 3, columns=2, side=200, key={"name": GREEN})
    drawn = pixels(tmp_path / "out.png")
    assert (drawn[:LINE] == (0, 255, 0)).all(axis=2).sum() > 100
    assert drawn[2 * LINE + 100, 50].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("shape", "size"), [((427, 640), (320, 214)), ((640, 427), (214, 320)), ((64, 64), (320, 320))]
)
def test_the_longer_side_of_an_example_is_320_pixels_and_earlier_examples_are_deleted(tmp_path, shape, size):
    draw_examples(tmp_path / "examples", {"1": example(), "7": example()})
    draw_examples(tmp_path / "examples", {"7": example(*shape)})
    assert sorted(path.name for path in (tmp_path / "examples").iterdir()) == ["7.jpg", "7_truth.jpg"]
    for path in (tmp_path / "examples").iterdir():
        assert is_ours(path)
        with Image.open(path) as image:
            assert image.size == size


def test_the_boxes_of_an_example_are_in_the_right_place(tmp_path):
    draw_examples(tmp_path, {"7": example(160, 160, truth=[mark(40, 80, 120, 140)])})
    assert np.ptp(pixels(tmp_path / "7.jpg"), axis=2).max() < 30  # no detection: grey
    drawn = pixels(tmp_path / "7_truth.jpg")
    green = (drawn[..., 1] - drawn[..., 0] > 60) & (np.arange(320)[:, None] > 165)  # below the label
    rows, columns = np.nonzero(green)
    assert np.abs([columns.min() - 80, columns.max() - 240, rows.max() - 280]).max() <= 2
