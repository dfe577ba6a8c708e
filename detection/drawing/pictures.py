"""Detections drawn beside the ground truth, and what a detector is trained on, for a person to judge.

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
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from engine.files import write_whole
from engine.logbook import progress_bar
from engine.terminal import printable

PANEL_INCHES = 4.0  # width of one panel
DOTS_PER_INCH = 100
EXAMPLE_SIDE = 320  # pixels, the longer side of an example
EXAMPLE_DOTS_PER_INCH = 85  # letters and lines a little smaller than on the wider panels

MADE_BY = "ssd-workbench"  # in every PNG of _write, and in what detection.predict writes
MOST_CLASSES = 100  # in one picture
SIZE_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # pixels

Colour = tuple[float, float, float]  # red, green, blue, each 0 to 1
UNMATCHED: Colour = (0.9, 0.1, 0.1)
LEVEL_HUES = (0.83, 0.72, 0.58, 0.48, 0.33, 0.15)  # turns of the colour wheel


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


class Mark(NamedTuple):
    """A box over an image, in its pixels. One without a label is drawn thin, below the others."""

    box_xyxy: np.ndarray  # (4,)
    colour: Colour
    label: str = ""
    is_dashed: bool = False


class Panel(NamedTuple):
    """One image with what is marked on it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    caption: str
    marks: Sequence[Mark]
    dots_xy: np.ndarray = np.empty((0, 2))  # (m, 2) pixels


def draw_detections(path: Path, pictures: Sequence[Picture], class_names: Sequence[str], least_score: float) -> None:
    """Write a PNG: of each picture the ground truth on the left and the detections, with scores, on the right.

    class_names: all of the data set, in order of their labels; each has a colour of its own. least_score: that the
    pictures' detections have at least, for the captions. Crowds are dashed, and the surest detections lie on top."""
    pairs_per_row = 2 if len(pictures) > 3 else 1
    shown = []
    for picture in pictures:
        shown.append((picture.image, ": ".join(filter(None, [picture.caption, "ground truth"]))))
        shown.append((picture.image, f"{'' if picture.names else 'no '}detections of score {least_score:g} or more"))
    canvas, panels = _lay_out(shown, 2 * pairs_per_row, PANEL_INCHES)
    colours = class_colours(class_names)
    for left, right, picture in zip(panels[0::2], panels[1::2], pictures, strict=True):
        _draw_objects(left, picture, colours)
        _draw_detected(right, picture, colours)
    canvas.draw()
    # 256 colours: a third of the bytes, and a record of an experiment is to be committed. Spread over all that occur:
    # the commonest would leave none for a label or two.
    rendered = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    palette = rendered.quantize(256, Image.Quantize.MAXCOVERAGE)
    reduced = rendered.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    write_whole(path, lambda file: reduced.save(file, "PNG", optimize=True))


def draw_panels(
    path: Path, panels: Sequence[Panel], columns: int, inches: float, key: Mapping[str, Colour] | None = None
) -> None:
    """Write a PNG with the panels row by row, each so many inches wide, and above them what colours mean.

    Small boxes lie over large ones, and labels over all."""
    canvas, all_axes = _lay_out([(panel.image, panel.caption) for panel in panels], columns, inches, key)
    bar = progress_bar(panels, desc=f"drawing {path.name}", unit="panel", leave=False)
    for axes, panel in zip(all_axes, bar, strict=True):
        dot_size = np.clip(1500 / max(1, len(panel.dots_xy)), 1.5, 6)
        axes.scatter(*(panel.dots_xy.T - 0.5), dot_size, "white", edgecolors="black", linewidths=dot_size / 12)
        marks = sorted(
            panel.marks, key=lambda mark: (bool(mark.label), -np.prod(mark.box_xyxy[2:] - mark.box_xyxy[:2]))
        )
        for mark in marks:
            _outline(axes, mark.box_xyxy, mark.colour, mark.is_dashed, 1.6 if mark.label else 0.9)
        taken: list[np.ndarray] = []
        for mark in marks:
            if mark.label:
                _set_label(axes, mark.box_xyxy, mark.label, mark.colour, taken)
    _write(path, canvas)


def draw_classes(path: Path, names: Sequence[str], counts: Sequence[int], recalls: Sequence[float | None]) -> None:
    """Write a PNG: of each class how many objects it has, and the share of these that a default box fits.

    Of more than MOST_CLASSES classes, the commonest."""
    order = sorted(range(len(names)), key=lambda index: -counts[index])[:MOST_CLASSES]
    names, counts, recalls = ([values[index] for index in order] for values in (names, counts, recalls))
    figure = Figure((10, 1.0 + 0.2 * len(names)), DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(names))
    left.bar_label(left.barh(rows, counts, color="0.6"), [f"{count:,}" for count in counts], padding=3, fontsize=8)
    left.set_title("objects", loc="left", fontsize=10)
    left.set_xscale("log" if max(counts) > 50 * max(1, min(counts)) else "linear")
    left.margins(x=0.15)
    left.set_yticks(rows, list(map(printable, names)), fontsize=8, parse_math=False)
    left.set_ylim(len(names) - 0.4, -0.6)
    shares = np.array([recall or 0.0 for recall in recalls])
    missing = np.array([0.0 if recall is None else 1 - recall for recall in recalls])
    right.barh(rows, shares, color="0.6")
    rest = right.barh(rows, missing, left=shares, color=UNMATCHED)
    right.bar_label(rest, ["" if r is None else f"{r:.3f}" for r in recalls], padding=3, fontsize=8)
    right.set_title("recall of the default boxes; red: objects that none fits", loc="left", fontsize=10)
    right.set(xlim=(0, 1.15), xticks=np.linspace(0, 1, 6))  # room for the numbers
    _write(path, canvas)


def draw_sizes(
    path: Path,
    objects: Mapping[str, tuple[np.ndarray, np.ndarray]],
    levels: Sequence[tuple[float, float]],
) -> None:
    """Write a PNG: how large the objects are, in red those that no default box fits, over what each level can match.

    objects: by title, sides (n,) in pixels and whether a box fits (n,) bool. levels: smallest and largest side of
    each, pixels. The side of a box is the square root of its area."""
    figure = Figure((10, 3 * len(objects) + 2.5), DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    *histograms, spans = figure.subplots(len(objects) + 1, 1, sharex=True, height_ratios=[3] * len(objects) + [2])
    every_side = np.concatenate([sides for sides, _ in objects.values()] + [np.ravel(levels)])
    bins = np.geomspace(every_side.min(), every_side.max(), 61)
    for axes, (title, (sides, is_matched)) in zip(histograms, objects.items(), strict=True):
        axes.hist([sides[is_matched], sides[~is_matched]], bins, stacked=True, color=["0.6", UNMATCHED])
        axes.set_title(f"objects, {title}; red: no default box fits", loc="left", fontsize=10)
        axes.set_ylabel("objects")
        axes.yaxis.get_major_locator().set_params(integer=True)
    for row, (smallest, largest) in enumerate(levels):
        spans.barh(row, largest - smallest, left=smallest, color=level_colour(row))
    spans.set_yticks(range(len(levels)), [f"level {number + 1}" for number in range(len(levels))])
    spans.invert_yaxis()
    spans.set_title("sizes that the default boxes of each level can match", loc="left", fontsize=10)
    spans.set_xscale("log")
    spans.set_xlabel("square root of the area, pixels of the network's input")
    ticks = [tick for tick in SIZE_TICKS if every_side.min() <= tick <= every_side.max()]
    spans.set_xticks(ticks, [str(tick) for tick in ticks])
    spans.minorticks_off()
    _write(path, canvas)


def is_ours(path: Path) -> bool:
    """Whether a file is a PNG that draw_panels, draw_classes or draw_sizes wrote, or a JPEG of detection.predict."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MADE_BY or image.info.get("comment") == MADE_BY.encode()
    except OSError:
        return False


def draw_examples(folder: Path, pictures: Mapping[str, Picture], class_names: Sequence[str]) -> None:
    """Write two small JPEGs of each picture: name.jpg with the detections, name_truth.jpg with the ground truth.

    The folder is made, and emptied of earlier examples. Colours and lines are those of draw_detections."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.jpg"):
        path.unlink()
    colours = class_colours(class_names)
    for name, picture in pictures.items():
        scale = EXAMPLE_SIDE / max(picture.image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in picture.image.shape[:2])
        small = picture._replace(
            image=np.asarray(Image.fromarray(picture.image).resize((width, height), Image.Resampling.LANCZOS)),
            true_boxes_xyxy=picture.true_boxes_xyxy * scale,
            boxes_xyxy=picture.boxes_xyxy * scale,
        )
        for draw, suffix in ((_draw_detected, ""), (_draw_objects, "_truth")):
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
    taken: list[np.ndarray] = []
    for box, name, is_crowd in zip(picture.true_boxes_xyxy, picture.true_names, picture.true_is_crowd, strict=True):
        _outline(axes, box, colours[name], is_crowd)
        _set_label(axes, box, f"{name} (crowd)" if is_crowd else name, colours[name], taken)


def _draw_detected(axes: Axes, picture: Picture, colours: Mapping[str, Colour]) -> None:
    """The detections of a picture over its image, the surest on top."""
    taken: list[np.ndarray] = []
    for index in np.argsort(picture.scores):
        box, name = picture.boxes_xyxy[index], picture.names[index]
        _outline(axes, box, colours[name])
        _set_label(axes, box, f"{name} {picture.scores[index]:.2f}", colours[name], taken)


def class_colours(class_names: Sequence[str]) -> dict[str, Colour]:
    """A colour for each class, by its label: the same in every picture of a data set."""
    return {name: palette_colour(index) for index, name in enumerate(class_names)}


def palette_colour(index: int) -> Colour:
    """The index-th of a row of colours that can be told apart, up to some eighty.

    Vivid, pale and dark take turns; the hues of each go round in steps of the golden angle, which spread evenly
    however many there are."""
    turn, kind = divmod(index, 3)
    hue = (turn * (math.sqrt(5) - 1) / 2 + kind / 3) % 1
    saturation, value = ((0.95, 1.0), (0.5, 1.0), (0.95, 0.6))[kind]
    return tuple(hsv_to_rgb((hue, saturation, value)))


def place_label(
    box_xyxy: Sequence[float],
    label_size: Sequence[float],
    image_xyxy: Sequence[float],
    taken: Sequence[np.ndarray],
) -> tuple[np.ndarray, float]:
    """Where a label hides least of those that have their places, `taken`, and what share of it overlaps them.

    Over the box, in its upper corners, under it, in its lower corners; always on the image. label_size: width, height;
    all in the same unit. Returns (4,), xyxy, as `taken` are, and the share."""
    (x0, y0, x1, y1), (width, height) = box_xyxy, label_size
    first, last = np.split(np.asarray(image_xyxy, float), 2)
    corners = np.array([(left, top) for top in (y0 - height, y0, y1, y1 - height) for left in (x0, x1 - width)], float)
    corners = corners.clip(first, np.maximum(first, last - label_size))
    places = np.concatenate([corners, corners + label_size], axis=1)  # (8, 4)
    others = np.reshape(taken, (-1, 4))
    sides = np.minimum(places[:, None, 2:], others[:, 2:]) - np.maximum(places[:, None, :2], others[:, :2])
    hidden = sides.clip(0).prod(axis=2).sum(axis=1) / (width * height)  # (8,)
    best = hidden.argmin()
    return places[best], hidden[best]


def level_colour(level: int) -> Colour:
    """The colour of a level, from 0; none of them is like UNMATCHED."""
    return tuple(hsv_to_rgb((LEVEL_HUES[level], 0.6, 1.0)))


def _write(path: Path, canvas: FigureCanvasAgg) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: canvas.print_png(file, metadata={"Software": MADE_BY}))


def _lay_out(
    shown: Sequence[tuple[np.ndarray, str]], columns: int, inches: float, key: Mapping[str, Colour] | None = None
) -> tuple[FigureCanvasAgg, list[Axes]]:
    """Images with their captions, row by row; returns the axes of each, in their final places."""
    rows = [shown[first : first + columns] for first in range(0, len(shown), columns)]
    tallest = [max(image.shape[0] / image.shape[1] for image, _ in row) for row in rows]
    row_heights = [inches * min(1.0, ratio) + 0.3 for ratio in tallest]  # 0.3 for the captions
    height = sum(row_heights) + 0.3 * bool(key)
    figure = Figure((columns * inches, height), DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=row_heights)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("N")
    for axes, (image, caption) in zip(grid.flat, shown, strict=False):
        axes.imshow(image, interpolation="bilinear")
        axes.set_title(printable(caption), loc="left", fontsize=9, parse_math=False)
    if key:
        handles = [Line2D([], [], color=colour, linewidth=4) for colour in key.values()]
        figure.legend(handles, key, loc="outside upper left", ncols=len(key), fontsize=9, facecolor="0.75")
    figure.draw_without_rendering()  # from here on the panels have their places, and a label's size is known
    return canvas, list(grid.flat[: len(shown)])


def _outline(
    axes: Axes, box_xyxy: np.ndarray, colour: Colour, is_dashed: bool = False, line_width: float = 1.6
) -> None:
    """A line around a box, with a darker one behind it, for light images."""
    x0, y0, x1, y1 = (float(value) - 0.5 for value in box_xyxy)  # imshow counts from the middle of a pixel
    axes.add_patch(
        Rectangle(
            (x0, y0), x1 - x0, y1 - y0,
            fill=False, edgecolor=colour, linewidth=line_width, linestyle="dashed" if is_dashed else "solid",
            path_effects=[withStroke(linewidth=line_width + 1, foreground="black", alpha=0.5)],
        )
    )  # fmt: skip


def _set_label(axes: Axes, box_xyxy: np.ndarray, label: str, colour: Colour, taken: list[np.ndarray]) -> None:
    """Label a box where `place_label` says.

    taken: their places (4,) xyxy; the new one is added."""
    luminance = np.dot(colour, (0.299, 0.587, 0.114))
    text = axes.text(
        0, 0, printable(label), fontsize=8, color="black" if luminance > 0.5 else "white", verticalalignment="bottom",
        parse_math=False, bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
    )  # fmt: skip
    text.set_in_layout(False)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    extent, per_dot = text.get_window_extent(), (right - left) / axes.bbox.width
    margin = 2 * per_dot  # for the label's frame
    size = np.array([extent.width, extent.height]) * per_dot + 2 * margin
    box = np.asarray(box_xyxy, float) - 0.5  # imshow counts from the middle of a pixel
    place, _ = place_label(box, size, (left, top, right, bottom), taken)
    text.set_position((place[0] + margin, place[3] - margin))
    taken.append(place)
