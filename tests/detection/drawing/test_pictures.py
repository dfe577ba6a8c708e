"""detection/drawing/pictures.py: panels are complete and legible, boxes are where they belong, files are marked."""

import numpy as np
import pytest
from PIL import Image

from detection.drawing import pictures
from detection.drawing.boxes import Mark
from detection.drawing.pictures import (
    LINE,
    Panel,
    Picture,
    class_colours,
    draw_detections,
    draw_examples,
    draw_panels,
)
from engine.charts import is_ours

CLASSES = ("cat", "dog", "ant", "bee")
GREEN = (0.0, 1.0, 0.0)


def picture(height=128, width=128, names=("cat",), true_names=("cat",), caption="image 7"):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.5, (len(names) + len(true_names), 2))
    boxes_xyxy = np.concatenate([corners, corners + 0.4], axis=1) * [width, height, width, height]
    return Picture(
        image=np.full((height, width, 3), 90, np.uint8),
        true_boxes_xyxy=boxes_xyxy[len(names) :],
        true_names=true_names,
        true_is_crowd=[False] * len(true_names),
        boxes_xyxy=boxes_xyxy[: len(names)],
        names=names,
        scores=np.linspace(0.4, 0.9, len(names)),
        caption=caption,
    )


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_any_number_of_pictures_of_any_shape_is_written(tmp_path, count):
    shapes = [(128, 128), (427, 640), (640, 427), (64, 300), (300, 64)]
    draw_detections(tmp_path / "out.png", [picture(*shape) for shape in shapes[:count]], CLASSES, 0.3)
    drawn = pixels(tmp_path / "out.png")
    assert drawn.shape[1] >= 800
    assert drawn.min() < 255
    assert is_ours(tmp_path / "out.png")


def test_an_image_without_objects_or_detections_is_drawn_without_boxes(tmp_path):
    draw_detections(tmp_path / "out.png", [picture(names=(), true_names=())], CLASSES, 0.3)
    drawn = pixels(tmp_path / "out.png")
    assert (drawn.max(axis=2) - drawn.min(axis=2)).max() < 8  # grey


def test_the_best_detection_comes_first_and_crowds_are_dashed():
    (crowd,) = picture()._replace(true_is_crowd=[True]).truth(class_colours(CLASSES))
    assert (crowd.label, crowd.is_dashed) == ("cat (crowd)", True)
    sample = picture(names=("cat", "dog", r"$a_$"))._replace(scores=[0.5, 0.9, 0.3])
    found = sample.found(class_colours([*CLASSES, r"$a_$"]))
    assert [mark.label for mark in found] == ["dog 0.90", "cat 0.50", r"$a_$ 0.30"]


def test_the_colour_of_a_single_small_label_survives_the_palette(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "palette_colour", lambda index: (1.0, 0.0, 1.0))
    photo = np.random.default_rng(0).integers(0, (256, 200, 60), (400, 400, 3), dtype=np.uint8)  # without such a colour
    sample = picture(names=())._replace(image=photo, true_boxes_xyxy=np.array([[50, 50, 60, 60]]))
    draw_detections(tmp_path / "out.png", [sample], CLASSES, 0.3)
    distances = np.abs(pixels(tmp_path / "out.png") - (255, 0, 255)).max(axis=2)
    assert (distances < 40).sum() > 100


def test_a_box_that_is_marked_is_drawn_where_it_is(tmp_path):
    green = Mark(np.array([20, 40, 60, 80]), GREEN)
    draw_panels(tmp_path / "new/out.png", [Panel(np.zeros((100, 100, 3), np.uint8), "", [green])], columns=1, side=500)
    rows, columns = np.nonzero(pixels(tmp_path / "new/out.png") @ (-1, 1, 0) > 128)
    found = np.array([columns.min(), rows.min() - LINE, columns.max() + 1, rows.max() + 1 - LINE]) / 5
    assert np.abs(found - green.box_xyxy).max() < 1


def test_dots_and_a_key_are_drawn(tmp_path):
    panel = Panel(np.zeros((100, 100, 3), np.uint8), "", [], dots_xy=np.array([[25, 50]]))
    draw_panels(tmp_path / "out.png", [panel] * 3, columns=2, side=200, key={"name": GREEN})
    drawn = pixels(tmp_path / "out.png")
    assert (drawn[:LINE] == (0, 255, 0)).all(axis=2).sum() > 100
    assert drawn[2 * LINE + 100, 50].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("shape", "size"), [((427, 640), (320, 214)), ((640, 427), (214, 320)), ((64, 64), (320, 320))]
)
def test_an_example_is_320_pixels_on_its_longer_side(tmp_path, shape, size):
    draw_examples(tmp_path, {"7": picture(*shape)}, CLASSES)
    for name in ("7.jpg", "7_truth.jpg"):
        with Image.open(tmp_path / name) as image:
            assert image.size == size


def test_an_example_has_its_boxes_where_they_are(tmp_path):
    sample = picture(height=160, width=160, names=())._replace(true_boxes_xyxy=np.array([[40, 80, 120, 140]]))
    draw_examples(tmp_path, {"7": sample}, CLASSES)
    assert np.ptp(pixels(tmp_path / "7.jpg"), axis=2).max() < 30  # no detection: grey
    drawn = pixels(tmp_path / "7_truth.jpg")
    red = (drawn[..., 0] - drawn[..., 1] > 60) & (np.arange(320)[:, None] > 165)  # below the label
    rows, columns = np.nonzero(red)
    assert np.abs([columns.min() - 80, columns.max() - 240, rows.max() - 280]).max() <= 2


def test_examples_of_an_earlier_record_are_removed(tmp_path):
    draw_examples(tmp_path / "examples", {"1": picture(), "2": picture()}, CLASSES)
    draw_examples(tmp_path / "examples", {"2": picture(), "3": picture()}, CLASSES)
    files = list((tmp_path / "examples").iterdir())
    assert {path.name for path in files} == {"2.jpg", "2_truth.jpg", "3.jpg", "3_truth.jpg"}
    assert all(map(is_ours, files))
