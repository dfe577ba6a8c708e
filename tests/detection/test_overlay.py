"""Pictures of detections: boxes where they belong, labels that can be read."""

import numpy as np
import pytest

from detection.detector import Detections
from detection.overlay import LEAST_SIDE, MOST_SIDE, _place, draw_found


def detections(*boxes_xyxy, label=1):
    count = len(boxes_xyxy)
    return Detections(
        np.array(boxes_xyxy, float).reshape(-1, 4),
        np.linspace(0.9, 0.5, count),
        np.full(count, label),
        ["Kätzchen"] * count,
        np.full(count, label),
    )


GREY = np.full((600, 1000, 3), 128, np.uint8)


def test_boxes_are_drawn_along_their_edges():
    changed = (np.asarray(draw_found(GREY, detections((300, 200, 700, 500)))) != GREY).any(axis=2)
    assert changed[200:500, 300].all()
    assert changed[200:500, 699].all()
    assert changed[200, 300:700].all()
    assert changed[499, 300:700].all()
    assert not changed[210:490, 310:690].any()
    assert not changed[505:].any()


def test_without_detections_the_picture_is_the_image():
    assert np.array_equal(np.asarray(draw_found(GREY, detections())), GREY)


def test_the_image_that_is_drawn_over_stays_as_it_is():
    pixels = GREY.copy()
    draw_found(pixels, detections((300, 200, 700, 500)))
    assert np.array_equal(pixels, GREY)


@pytest.mark.parametrize(("side", "expected"), [(40, LEAST_SIDE), (900, 900), (9000, MOST_SIDE)])
def test_small_and_very_large_images_are_resized(side, expected):
    picture = draw_found(np.zeros((side // 20, side, 3), np.uint8), detections((0, 0, side, side / 20)))
    assert picture.size == (expected, round(expected * (side // 20) / side))


def test_a_class_has_its_own_colour_on_every_image():
    first, again, other = (
        np.asarray(draw_found(GREY, detections((300, 200, 700, 500), label=label)))[350, 301] for label in (1, 1, 2)
    )
    assert first.tolist() == again.tolist() != other.tolist()


def test_boxes_without_area_or_over_the_edge_are_drawn():
    drawn = np.asarray(draw_found(GREY, detections((50, 50, 50, 50), (990, 590, 1000, 600), (0, 0, 1000, 600))))
    assert (drawn != GREY).any()


@pytest.mark.parametrize("corner", [(0, 0), (950, 0), (0, 580), (950, 580)])
def test_labels_stay_on_the_image(corner):
    x, y = corner
    place, _ = _place(np.array([x, y, x + 50, y + 20]), (120, 18), (1000, 600), np.empty((0, 4)))
    assert (place >= 0).all()
    assert (place <= (1000, 600, 1000, 600)).all()
    assert place[2] - place[0] == pytest.approx(120)


def test_labels_of_one_place_move_apart():
    box, taken = np.array([300, 200, 500, 400]), np.empty((0, 4))
    for _ in range(8):
        place, hidden = _place(box, (90, 18), (1000, 600), taken)
        assert hidden == 0
        taken = np.concatenate([taken, place[None]])
    assert _place(box, (90, 18), (1000, 600), taken)[1] > 0
