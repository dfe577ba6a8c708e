"""Pictures of detections: boxes where they belong, labels that can be read."""

from dataclasses import replace

import numpy as np
import pytest

from detection.coco.detections import Detections
from detection.drawing.overlay import LEAST_SIDE, MOST_SIDE, draw_found, undrawable


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


def test_line_ends_in_a_name_are_drawn_as_spaces():
    broken, whole = (replace(detections((300, 200, 700, 500)), class_names=[name]) for name in ("a\nb\t\0", "a b  "))
    assert np.array_equal(np.asarray(draw_found(GREY, broken)), np.asarray(draw_found(GREY, whole)))


def test_names_that_the_font_cannot_draw_are_found():
    assert undrawable(["dog", "Kätzchen", "Кот", "猫 cat", "two\nlines", "名\n"]) == ["猫 cat", "名 "]
