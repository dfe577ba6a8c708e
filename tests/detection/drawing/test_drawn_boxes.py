"""detection/drawing/boxes.py: positions of boxes, places of labels, and colours of classes."""

import numpy as np
import pytest

from detection.coco.detections import Detections
from detection.drawing.boxes import MAX_SIDE, MIN_SIDE, Mark, draw_marks, draw_predictions, palette_colour, place_label

GREY = np.full((600, 1000, 3), 128, np.uint8)
MAGENTA = (1.0, 0.0, 1.0)


def detections(*boxes_xyxy, label=1):
    count = len(boxes_xyxy)
    return Detections(
        np.array(boxes_xyxy, float).reshape(-1, 4),
        np.linspace(0.9, 0.5, count),
        np.full(count, label),
        ["Kätzchen"] * count,
        np.full(count, label),
    )


def drawn(*marks):
    """Return the grey image with marks drawn on it, (600, 1000, 3) uint8."""
    return np.asarray(draw_marks(GREY, marks, 1000))


def test_boxes_are_drawn_along_their_edges_on_a_copy_of_the_image():
    pixels = GREY.copy()
    changed = (np.asarray(draw_predictions(pixels, detections((300, 200, 700, 500)))) != GREY).any(axis=2)
    assert np.array_equal(np.asarray(draw_predictions(pixels, detections())), GREY)
    assert changed[200:500, [300, 699]].all()
    assert changed[[200, 499], 300:700].all()
    assert not changed[210:490, 310:690].any()
    assert not changed[505:].any()


@pytest.mark.parametrize(("side", "expected"), [(40, MIN_SIDE), (900, 900), (9000, MAX_SIDE)])
def test_small_and_very_large_images_are_resized(side, expected):
    picture = draw_predictions(np.zeros((side // 20, side, 3), np.uint8), detections((0, 0, side, side / 20)))
    assert picture.size == (expected, round(expected * (side // 20) / side))


def test_boxes_without_area_or_at_the_edge_are_drawn():
    picture = draw_predictions(GREY, detections((50, 50, 50, 50), (990, 590, 1000, 600), (0, 0, 1000, 600)))
    assert (np.asarray(picture) != GREY).any()


def test_only_the_lines_of_a_dashed_box_have_gaps():
    for is_dashed in (False, True):
        line = drawn(Mark(np.array([300, 200, 700, 500]), MAGENTA, "a", is_dashed))[300:400, 300]
        assert np.all(line == (255, 0, 255), axis=1).all() != is_dashed


def test_the_first_mark_is_on_top_and_a_mark_without_a_label_is_thin():
    box = np.array([300, 200, 700, 500])
    picture = drawn(Mark(box, MAGENTA, "a"), Mark(box, (0.0, 1.0, 0.0), "b"))
    assert picture[400, 300].tolist() == [255, 0, 255]
    assert (drawn(Mark(box, MAGENTA))[400, 280:320] == (255, 0, 255)).all(axis=1).sum() == 1


@pytest.mark.parametrize("corner", [(0, 0), (950, 0), (0, 580), (950, 580)])
def test_labels_are_placed_inside_the_image(corner):
    x, y = corner
    place, _ = place_label((x, y, x + 50, y + 20), (120, 18), (1000, 600), [])
    assert (place >= 0).all()
    assert (place <= (1000, 600, 1000, 600)).all()
    assert place[2:] - place[:2] == pytest.approx([120, 18])


def test_eight_labels_of_one_box_do_not_overlap_and_a_ninth_does():
    box, occupied = (300, 200, 500, 400), []
    for _ in range(8):
        place, hidden = place_label(box, (90, 18), (1000, 600), occupied)
        assert hidden == 0
        occupied.append(place)
    assert place_label(box, (90, 18), (1000, 600), occupied)[1] == pytest.approx(1)


def test_eighty_classes_have_distinct_colours():
    colours = np.array([palette_colour(index) for index in range(80)])
    distances = np.linalg.norm(colours[:, None] - colours, axis=2) + np.eye(80)
    assert distances.min() > 0.05
    assert distances[:8, :8].min() > 0.3
    assert ((colours >= 0) & (colours <= 1)).all()
