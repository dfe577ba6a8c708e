"""detection/drawing/charts.py: the width of charts, room for all names, and colours that show the numbers."""

import numpy as np
import pytest
from PIL import Image

from detection.drawing.charts import (
    DOTS_PER_INCH,
    MAX_BARS,
    MAX_MATRIX_CLASSES,
    WIDTH,
    draw_class_scores,
    draw_confusion,
    draw_precision,
)
from stats.image_statistics import Matches

COLUMN = round(WIDTH * DOTS_PER_INCH)
ROW = 14  # pixels, height of a line of text of 8 points with some space
BLUE = (0, 114, 178)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int64)


def coloured(picture, colour):
    """Return (H, W) bool: where a picture has approximately this colour."""
    return np.abs(picture - colour).sum(axis=2) < 40


def names(count):
    return [f"class {number}" for number in range(count)]


def matches(classes, objects=4, thresholds=2):
    """Return matches in one image: per class, `objects` objects, two true positives and one false positive."""
    rows = [(label, score, is_right) for label in range(classes) for score, is_right in ((0.9, 1), (0.5, 0), (0.4, 1))]
    labels, scores, right = map(np.array, zip(*rows, strict=True))
    return Matches(
        np.array([1]), np.array(names(classes)), np.linspace(0.5, 0.75, thresholds),
        np.zeros(len(rows), np.int32), labels.astype(np.int16), scores,
        np.repeat(right[:, None] == 1, thresholds, axis=1), np.zeros((len(rows), thresholds), bool),
        np.zeros(objects * classes, np.int32), np.repeat(np.arange(classes, dtype=np.int16), objects),
    )  # fmt: skip


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_curves_are_as_wide_as_a_column_for_any_number_of_classes(tmp_path, classes):
    draw_precision(tmp_path / "chart.png", matches(classes))
    assert pixels(tmp_path / "chart.png").shape[1] == COLUMN


def test_without_objects_no_curves_are_drawn(tmp_path):
    draw_precision(tmp_path / "chart.png", matches(2, objects=0))
    picture = pixels(tmp_path / "chart.png")
    assert (picture.max(axis=2) - picture.min(axis=2)).max() < 30  # grey


@pytest.mark.parametrize("classes", [3, 80, 1203])
def test_each_class_up_to_the_maximum_has_a_bar_and_room_for_its_name(tmp_path, classes):
    per_class = {name: {"AP": 0.4, "AP50": 0.6} for name in names(classes)}
    draw_class_scores(tmp_path / "chart.png", per_class, [5] * classes)
    picture = pixels(tmp_path / "chart.png")
    at_0_2 = coloured(picture, BLUE)[:, 200]
    assert np.count_nonzero(np.diff(at_0_2.astype(int)) == 1) == min(classes, MAX_BARS)
    assert picture.shape[0] > ROW * min(classes, MAX_BARS)


def test_bar_lengths_are_the_scores(tmp_path):
    draw_class_scores(tmp_path / "half.png", {"a": {"AP": 0.5, "AP50": 1.0}}, [5])
    picture = pixels(tmp_path / "half.png")
    dark, bar = coloured(picture, BLUE), coloured(picture, BLUE) | coloured(picture, (185, 214, 232))
    row = np.flatnonzero(dark.any(axis=1))[3]
    assert dark[row].sum() / bar[row].sum() == pytest.approx(0.5, abs=0.02)
    draw_class_scores(tmp_path / "none.png", {"a": {"AP": None, "AP50": None}}, [0])
    assert not coloured(pixels(tmp_path / "none.png"), BLUE).any()


@pytest.mark.parametrize("classes", [1, MAX_MATRIX_CLASSES, 80])
def test_the_matrix_has_room_for_each_number_and_a_maximum_of_classes(tmp_path, classes):
    counts = np.eye(classes + 1, dtype=np.int64)
    counts[0, :] = 9999
    draw_confusion(tmp_path / "chart.png", counts, names(classes), 0.3)
    height, width, _ = pixels(tmp_path / "chart.png").shape
    assert COLUMN - 1 <= width < 1.6 * COLUMN
    assert height > 3 * ROW * (min(classes, MAX_MATRIX_CLASSES) + 1)


def test_matrix_colours_are_fractions_of_the_true_class_and_the_last_row_has_none(tmp_path):
    draw_confusion(tmp_path / "right.png", np.diag([7, 7, 7, 0]), names(3), 0.3)
    draw_confusion(tmp_path / "made_up.png", np.array([[0] * 4] * 3 + [[7, 7, 7, 0]]), names(3), 0.3)
    dark = (8, 48, 107)  # the end of the colour map
    shares = [coloured(pixels(tmp_path / name), dark).mean() for name in ("right.png", "made_up.png")]
    assert shares[0] > 0.08
    assert shares[1] < 0.005
