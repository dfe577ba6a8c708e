"""Detections drawn beside the ground truth, for a person to judge.

Figures are made without pyplot: it keeps global state, and picks a backend that may need a display.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from engine.files import write_whole

PANEL_INCHES = 4.0  # width of one panel
DOTS_PER_INCH = 100
EXAMPLE_SIDE = 320  # pixels, the longer side of an example
EXAMPLE_DOTS_PER_INCH = 85  # letters and lines a little smaller than on the wider panels

Colour = tuple[float, float, float]  # red, green, blue, each 0 to 1


class Picture(NamedTuple):
    """One image with what is in it and what was found in it. Boxes are in its pixels."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    true_boxes_xyxy: np.ndarray  # (n, 4)
    true_names: Sequence[str]  # n class names
    true_is_crowd: Sequence[bool]  # n
    boxes_xyxy: np.ndarray  # (m, 4)
    names: Sequence[str]  # m class names
    scores: Sequence[float]  # m, 0 to 1
    caption: str = ""


def draw_detections(path: str | Path, pictures: Sequence[Picture]) -> None:
    """Write a PNG: of each picture the ground truth on the left and the detections, with scores, on the right.

    A class has one colour throughout, crowds are dashed, and the surest detections lie on top."""
    pairs_per_row = 2 if len(pictures) > 3 else 1
    rows = [pictures[first : first + pairs_per_row] for first in range(0, len(pictures), pairs_per_row)]
    tallest = [max(p.image.shape[0] / p.image.shape[1] for p in row) for row in rows]
    row_heights = [PANEL_INCHES * min(1.0, ratio) + 0.3 for ratio in tallest]  # 0.3 for the titles
    figure = Figure((2 * pairs_per_row * PANEL_INCHES, sum(row_heights)), DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 2 * pairs_per_row, squeeze=False, height_ratios=row_heights)
    panels = list(zip(grid[:, 0::2].flat, grid[:, 1::2].flat, strict=True))
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("N")
    for (left, right), picture in zip(panels, pictures, strict=False):
        for axes in (left, right):
            axes.imshow(picture.image, interpolation="bilinear")
        left.set_title(
            ": ".join(filter(None, [picture.caption, "ground truth"])), loc="left", fontsize=9, parse_math=False
        )
        right.set_title("detections" if picture.names else "no detections", loc="left", fontsize=9, parse_math=False)
    figure.draw_without_rendering()  # from here on the panels have their places, and a label's size is known

    colours = _class_colours(pictures)
    for (left, right), picture in zip(panels, pictures, strict=False):
        _draw_objects(left, picture, colours)
        _draw_found(right, picture, colours)
    canvas.draw()
    # 256 colours: a third of the bytes, and a record of an experiment is to be committed.
    rendered = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    reduced = rendered.quantize(palette=rendered.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    write_whole(path, lambda file: reduced.save(file, "PNG", optimize=True))


def draw_examples(folder: Path, pictures: Mapping[str, Picture]) -> None:
    """Write two small JPEGs of each picture: name.jpg with the detections, name_truth.jpg with the ground truth.

    The folder is made, and emptied of earlier examples. Colours and lines are those of draw_detections."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.jpg"):
        path.unlink()
    colours = _class_colours(list(pictures.values()))
    for name, picture in pictures.items():
        scale = EXAMPLE_SIDE / max(picture.image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in picture.image.shape[:2])
        small = picture._replace(
            image=np.asarray(Image.fromarray(picture.image).resize((width, height), Image.Resampling.LANCZOS)),
            true_boxes_xyxy=picture.true_boxes_xyxy * scale,
            boxes_xyxy=picture.boxes_xyxy * scale,
        )
        for draw, suffix in ((_draw_found, ""), (_draw_objects, "_truth")):
            # Half a pixel more, for the canvas rounds down.
            inches = [(side + 0.5) / EXAMPLE_DOTS_PER_INCH for side in (width, height)]
            figure = Figure(inches, EXAMPLE_DOTS_PER_INCH)
            canvas = FigureCanvasAgg(figure)
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.imshow(small.image, interpolation="nearest", aspect="auto")  # a pixel is a pixel
            draw(axes, small, colours)
            canvas.draw()
            # Without chroma subsampling, which would smear coloured lines and small letters.
            example = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            save = partial(example.save, format="JPEG", quality=85, subsampling=0, optimize=True)
            write_whole(folder / f"{name}{suffix}.jpg", save)


def _draw_objects(axes: Axes, picture: Picture, colours: Mapping[str, Colour]) -> None:
    """The ground truth of a picture over its image; crowds are dashed."""
    for box, name, is_crowd in zip(picture.true_boxes_xyxy, picture.true_names, picture.true_is_crowd, strict=True):
        label = f"{name} (crowd)" if is_crowd else name
        _draw_box(axes, box, label, colours[name], "dashed" if is_crowd else "solid")


def _draw_found(axes: Axes, picture: Picture, colours: Mapping[str, Colour]) -> None:
    """The detections of a picture over its image, the surest on top."""
    for index in np.argsort(picture.scores):
        name = picture.names[index]
        _draw_box(axes, picture.boxes_xyxy[index], f"{name} {picture.scores[index]:.2f}", colours[name], "solid")


def _class_colours(pictures: Sequence[Picture]) -> dict[str, Colour]:
    """A colour for each class; those of the ground truth come first, so that they stay the same from one
    picture of the same images to the next."""
    true = sorted({name for picture in pictures for name in picture.true_names})
    found = sorted({name for picture in pictures for name in picture.names} - set(true))
    return {name: palette_colour(index) for index, name in enumerate(true + found)}


def palette_colour(index: int) -> Colour:
    """The index-th of a row of colours that can be told apart, up to some eighty.

    Vivid, pale and dark take turns; the hues of each go round in steps of the golden angle, which spread evenly
    however many there are."""
    turn, kind = divmod(index, 3)
    hue = (turn * (math.sqrt(5) - 1) / 2 + kind / 3) % 1
    saturation, value = ((0.95, 1.0), (0.5, 1.0), (0.95, 0.6))[kind]
    return tuple(hsv_to_rgb((hue, saturation, value)))


def _draw_box(axes: Axes, box_xyxy: np.ndarray, label: str, colour: Colour, line_style: str) -> None:
    """Outline a box and set its label over its top left corner, moved as far as it takes to stay on the image."""
    x0, y0, x1, y1 = (float(value) - 0.5 for value in box_xyxy)  # imshow counts from the middle of a pixel
    luminance = np.dot(colour, (0.299, 0.587, 0.114))
    contrast = "black" if luminance > 0.5 else "white"
    axes.add_patch(
        Rectangle(
            (x0, y0), x1 - x0, y1 - y0,
            fill=False, edgecolor=colour, linewidth=1.6, linestyle=line_style,
            path_effects=[withStroke(linewidth=2.6, foreground="black", alpha=0.5)],
        )
    )  # fmt: skip
    text = axes.text(
        x0, y0, label, fontsize=8, color=contrast, verticalalignment="bottom", parse_math=False,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
    )  # fmt: skip
    text.set_in_layout(False)
    extent = text.get_window_extent()
    left, right = axes.get_xlim()
    per_dot = (right - left) / axes.bbox.width
    margin = 2 * per_dot  # for the label's frame
    text.set_x(max(left + margin, min(x0, right - extent.width * per_dot - 2 * margin)))
    top = axes.get_ylim()[1]
    if y0 - extent.height * per_dot - 2 * margin < top:
        text.set_verticalalignment("top")
        text.set_y(max(y0, top + margin))
