"""Pictures of detections: complete, legible, the same on every run."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from detection.drawing import pictures
from detection.drawing.pictures import (
    Mark,
    Panel,
    Picture,
    class_colours,
    draw_classes,
    draw_detections,
    draw_examples,
    draw_panels,
    draw_sizes,
    is_ours,
    palette_colour,
    place_label,
)

CLASSES = ("cat", "dog", "ant", "bee")


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


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_any_number_of_pictures_of_any_shape_is_written(tmp_path, count):
    shapes = [(128, 128), (427, 640), (640, 427), (64, 300), (300, 64)]
    draw_detections(tmp_path / "out.png", [picture(*shape) for shape in shapes[:count]], CLASSES, 0.3)
    with Image.open(tmp_path / "out.png") as image:
        assert image.width >= 800
        assert image.getextrema()[0] != (255, 255)


def test_an_image_without_objects_or_detections_is_drawn(tmp_path):
    draw_detections(tmp_path / "out.png", [picture(names=(), true_names=())], CLASSES, 0.3)
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_names_are_shown_as_they_are(tmp_path, monkeypatch):
    shown = record_labels(monkeypatch)
    name = r"$\alpha_$ & <b>"
    draw_detections(tmp_path / "out.png", [picture(names=(name,), true_names=(name,), caption="$x$")], [name], 0.3)
    assert shown == [name, f"{name} 0.40"]


def record_labels(monkeypatch):
    shown, text = [], Axes.text
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, s, **kwargs: shown.append(s) or text(axes, x, y, s, **kwargs))
    return shown


def test_crowds_are_dashed_and_say_so(tmp_path, monkeypatch):
    shown, drawn = record_labels(monkeypatch), []
    monkeypatch.setattr(Axes, "add_patch", lambda axes, patch: drawn.append(patch.get_linestyle()))
    draw_detections(tmp_path / "out.png", [picture(names=())._replace(true_is_crowd=[True])], CLASSES, 0.3)
    assert shown == ["cat (crowd)"]
    assert drawn == ["dashed"]


def test_the_surest_detection_lies_on_top(tmp_path, monkeypatch):
    shown = record_labels(monkeypatch)
    sample = picture(names=("cat", "dog", "ant"), true_names=())._replace(scores=[0.5, 0.9, 0.3])
    draw_detections(tmp_path / "out.png", [sample], CLASSES, 0.3)
    assert shown == ["ant 0.30", "cat 0.50", "dog 0.90"]


def test_the_colour_of_a_single_small_label_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "palette_colour", lambda index: (1.0, 0.0, 1.0))
    photo = np.random.default_rng(0).integers(0, (256, 200, 60), (400, 400, 3), dtype=np.uint8)  # without such a colour
    sample = picture(names=())._replace(image=photo, true_boxes_xyxy=np.array([[50, 50, 60, 60]]))
    draw_detections(tmp_path / "out.png", [sample], CLASSES, 0.3)
    with Image.open(tmp_path / "out.png") as image:
        distances = np.abs(np.asarray(image.convert("RGB")).astype(int) - (255, 0, 255)).max(axis=2)
    assert (distances < 40).sum() > 100


@pytest.fixture
def labels(monkeypatch) -> list:
    """The labels that are drawn."""
    texts, text = [], Axes.text
    monkeypatch.setattr(Axes, "text", lambda axes, *a, **k: texts.append(text(axes, *a, **k)) or texts[-1])
    return texts


def test_labels_stay_on_the_image(tmp_path, labels):
    corners = np.array([[0, 0, 9, 9], [120, 0, 128, 9], [0, 120, 9, 128], [120, 120, 128, 128]])
    sample = picture(names=("a rather long name",) * 4)._replace(boxes_xyxy=corners)
    draw_detections(tmp_path / "out.png", [sample], ["cat", "a rather long name"], 0.3)
    for label in labels:
        extent, panel = label.get_window_extent(), label.axes.bbox
        assert panel.x0 - 1 <= extent.x0 < extent.x1 <= panel.x1 + 1
        assert panel.y0 - 1 <= extent.y0 < extent.y1 <= panel.y1 + 1


def test_labels_of_boxes_in_one_place_do_not_hide_each_other(tmp_path, labels):
    marks = [Mark(np.array([30, 50, 90, 80]), (1.0, 0.0, 0.0), f"name {number}") for number in range(4)]
    draw_panels(tmp_path / "out.png", [Panel(np.zeros((128, 128, 3), np.uint8), "", marks)], columns=1, inches=6)
    extents = [label.get_window_extent() for label in labels]
    assert len(extents) == 4
    assert not any(one.overlaps(other) for i, one in enumerate(extents) for other in extents[:i])


@pytest.mark.parametrize("corner", [(0, 0), (950, 0), (0, 580), (950, 580)])
def test_a_place_of_a_label_is_on_the_image(corner):
    x, y = corner
    place, _ = place_label((x, y, x + 50, y + 20), (120, 18), (-0.5, -0.5, 999.5, 599.5), [])
    assert (place >= -0.5).all()
    assert (place <= (999.5, 599.5, 999.5, 599.5)).all()
    assert place[2:] - place[:2] == pytest.approx([120, 18])


def test_places_of_labels_of_one_box_move_apart():
    box, taken = (300, 200, 500, 400), []
    for _ in range(8):
        place, hidden = place_label(box, (90, 18), (0, 0, 1000, 600), taken)
        assert hidden == 0
        taken.append(place)
    assert place_label(box, (90, 18), (0, 0, 1000, 600), taken)[1] == pytest.approx(1)


def test_small_boxes_lie_over_large_ones_and_boxes_without_a_label_below_both(tmp_path, monkeypatch):
    widths = []
    monkeypatch.setattr(Axes, "add_patch", lambda axes, patch: widths.append(patch.get_width()))
    boxes = [
        Mark(np.array([0, 0, side, side]), (1.0, 0.0, 0.0), label) for side, label in ((5, "a"), (50, "b"), (2, ""))
    ]
    draw_panels(tmp_path / "out.png", [Panel(np.zeros((64, 64, 3), np.uint8), "", boxes)], columns=1, inches=2)
    assert widths == [2, 50, 5]


def test_a_box_that_is_marked_is_drawn_where_it_is(tmp_path):
    green = Mark(np.array([20, 40, 60, 80]), (0.0, 1.0, 0.0))
    draw_panels(tmp_path / "out.png", [Panel(np.zeros((100, 100, 3), np.uint8), "", [green])], columns=1, inches=5)
    with Image.open(tmp_path / "out.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rows, columns = np.nonzero(pixels.sum(axis=2) == 0)  # the black image
    top, left, scale = rows.min(), columns.min(), (columns.max() + 1 - columns.min()) / 100
    rows, columns = np.nonzero(pixels[..., 1] - pixels[..., 0] > 128)
    found = np.array([columns.min() - left, rows.min() - top, columns.max() + 1 - left, rows.max() + 1 - top]) / scale
    assert np.abs(found - green.box_xyxy).max() < 1


def test_pictures_of_these_functions_are_told_from_others(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("not a picture")
    draw_classes(tmp_path / "ours.png", ["cat"], [3], [0.5])
    assert [is_ours(tmp_path / f"{name}.png") for name in ("other", "text", "ours")] == [False, False, True]


def test_of_many_classes_the_commonest_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_CLASSES", 2)
    shown, set_yticks = [], Axes.set_yticks
    monkeypatch.setattr(
        Axes, "set_yticks", lambda axes, t, names, **k: shown.extend(names) or set_yticks(axes, t, names)
    )
    draw_classes(tmp_path / "out.png", ["few", "none", "many"], [2, 0, 200], [0.5, None, 1.0])
    assert shown == ["many", "few"]


def test_sizes_are_drawn_even_where_augmentation_left_no_object(tmp_path):
    objects = {"all": (np.array([5.0, 50.0]), np.array([False, True])), "none": (np.empty(0), np.empty(0, bool))}
    draw_sizes(tmp_path / "out.png", objects, [(10.0, 40.0), (30.0, 100.0)])
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (1000, 850)


def test_a_class_has_the_colour_of_its_label():
    assert class_colours(["cat", "dog"])["dog"] == palette_colour(1)


def test_eighty_classes_have_eighty_colours():
    colours = np.array([palette_colour(index) for index in range(80)])
    distances = np.linalg.norm(colours[:, None] - colours, axis=2) + np.eye(80)
    assert distances.min() > 0.05
    assert distances[:8, :8].min() > 0.3
    assert ((colours >= 0) & (colours <= 1)).all()


@pytest.mark.parametrize(
    ("shape", "size"), [((427, 640), (320, 214)), ((640, 427), (214, 320)), ((64, 64), (320, 320))]
)
def test_an_example_is_320_pixels_on_its_longer_side(tmp_path, shape, size):
    draw_examples(tmp_path, {"7": picture(*shape)}, CLASSES)
    for name in ("7.jpg", "7_truth.jpg"):
        with Image.open(tmp_path / name) as image:
            assert image.size == size


def test_examples_show_detections_and_objects_apart(tmp_path, monkeypatch):
    shown = record_labels(monkeypatch)
    draw_examples(tmp_path, {"7": picture(names=("cat",), true_names=("dog",))}, CLASSES)
    assert shown == ["cat 0.40", "dog"]


def test_an_example_has_its_boxes_where_they_are(tmp_path):
    sample = picture(height=160, width=160, names=())._replace(true_boxes_xyxy=np.array([[40, 80, 120, 140]]))
    draw_examples(tmp_path, {"7": sample}, CLASSES)
    with Image.open(tmp_path / "7_truth.jpg") as image:
        pixels = np.asarray(image).astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 60) & (np.arange(320)[:, None] > 165)  # below the label
    rows, columns = np.nonzero(red)
    assert np.abs([columns.min() - 80, columns.max() - 240, rows.max() - 280]).max() <= 2


def test_examples_of_an_earlier_record_are_removed(tmp_path):
    draw_examples(tmp_path / "examples", {"1": picture(), "2": picture()}, CLASSES)
    draw_examples(tmp_path / "examples", {"2": picture(), "3": picture()}, CLASSES)
    names = {path.name for path in (tmp_path / "examples").iterdir()}
    assert names == {"2.jpg", "2_truth.jpg", "3.jpg", "3_truth.jpg"}
