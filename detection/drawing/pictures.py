"""Images side by side, with what is in them and what was found, for a person to judge."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from detection.drawing.boxes import Colour, Mark, draw_marks, draw_text, palette_colour, rgb
from engine.charts import MADE_BY, save_png
from engine.files import write_whole
from engine.logbook import progress_bar

PANEL_SIDE = 400  # pixels of one panel in detections.png
EXAMPLE_SIDE = 320  # pixels, the longer side of an example
LINE = 26  # pixels, the height of a caption
GAP = 6  # pixels between panels


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

    def truth(self, colours: Mapping[str, Colour]) -> list[Mark]:
        """The objects. colours: of the classes."""
        return object_marks(self.true_boxes_xyxy, self.true_names, self.true_is_crowd, colours)

    def found(self, colours: Mapping[str, Colour]) -> list[Mark]:
        """The detections, best first."""
        detections = sorted(zip(self.scores, self.names, self.boxes_xyxy, strict=True), key=lambda each: -each[0])
        return [Mark(box, colours[name], f"{name} {score:.2f}") for score, name, box in detections]


class Panel(NamedTuple):
    """One image with what is marked on it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    caption: str
    marks: Sequence[Mark]  # the first lie on top
    dots_xy: np.ndarray = np.empty((0, 2))  # (m, 2) pixels


def object_marks(
    boxes_xyxy: np.ndarray, names: Sequence[str], is_crowd: Sequence[bool], colours: Mapping[str, Colour]
) -> list[Mark]:
    """Return boxes (n, 4) with their class names and colours, small ones on top; crowds are dashed."""
    objects = zip(boxes_xyxy, names, is_crowd, strict=True)
    return small_first(
        Mark(box, colours[name], name + " (crowd)" * bool(crowd), bool(crowd)) for box, name, crowd in objects
    )


def small_first(marks: Iterable[Mark]) -> list[Mark]:
    """Return marks with small boxes on top of large ones, and boxes without a label below both."""
    return sorted(marks, key=lambda mark: (not mark.label, np.prod(mark.box_xyxy[2:] - mark.box_xyxy[:2])))


def class_colours(class_names: Sequence[str]) -> dict[str, Colour]:
    """Return the colour of each class, by its label: the same in every picture of a data set."""
    return {name: palette_colour(index) for index, name in enumerate(class_names)}


def draw_detections(path: Path, pictures: Sequence[Picture], class_names: Sequence[str], least_score: float) -> None:
    """Write a PNG: of each picture the ground truth on the left and the detections, with scores, on the right.

    class_names: all of the data set, in order of their labels. least_score: of the pictures' detections, for the
    captions."""
    colours = class_colours(class_names)
    panels = []
    for picture in pictures:
        truth = ": ".join(filter(None, [picture.caption, "ground truth"]))
        found = f"{'' if picture.names else 'no '}detections of score {least_score:g} or more"
        panels.append(Panel(picture.image, truth, picture.truth(colours)))
        panels.append(Panel(picture.image, found, picture.found(colours)))
    drawn = lay_out(panels, columns=4 if len(pictures) > 3 else 2, side=PANEL_SIDE)
    # 256 colours: a third of the bytes, because records of experiments are committed. Spread over all that occur: the
    # commonest would leave none for a label or two.
    palette = drawn.quantize(256, Image.Quantize.MAXCOVERAGE)
    save_png(path, drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))


def draw_panels(
    path: Path, panels: Sequence[Panel], columns: int, side: int, key: Mapping[str, Colour] | None = None
) -> None:
    """Write a PNG of panels, see `lay_out`."""
    bar = progress_bar(panels, desc=f"drawing {path.name}", unit="panel", leave=False)
    save_png(path, lay_out(bar, columns, side, key))


def lay_out(panels: Iterable[Panel], columns: int, side: int, key: Mapping[str, Colour] | None = None) -> Image.Image:
    """Return panels row by row, each image under its caption.

    side: of a panel, pixels; the longer side of its image. key: what colours stand for, written above the panels."""
    cells = []
    for panel in panels:
        image = draw_marks(panel.image, panel.marks, side)
        canvas, radius = ImageDraw.Draw(image), 2 if len(panel.dots_xy) < 500 else 1
        for xy in panel.dots_xy * (side / max(panel.image.shape[:2])):
            canvas.circle(xy.tolist(), radius, fill="white", outline="black")
        cell = Image.new("RGB", (side, image.height + LINE), "white")
        draw_text(cell, (0, LINE / 2), panel.caption)
        cell.paste(image, (0, LINE))
        cells.append(cell)
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    top = LINE if key else 0
    height = top + sum(max(cell.height for cell in row) + GAP for row in rows)
    picture = Image.new("RGB", (columns * (side + GAP) - GAP, height), "white")
    if key:
        picture.paste((190, 190, 190), (0, 0, picture.width, LINE))  # grey, because one of the colours is white
    left = 0
    for name, colour in (key or {}).items():
        ImageDraw.Draw(picture).rectangle((left + 6, 8, left + 28, LINE - 9), fill=rgb(colour))
        left = round(draw_text(picture, (left + 34, LINE / 2), name)) + 8
    for row in rows:
        for column, cell in enumerate(row):
            picture.paste(cell, (column * (side + GAP), top))
        top += max(cell.height for cell in row) + GAP
    return picture


def draw_examples(folder: Path, pictures: Mapping[str, Picture], class_names: Sequence[str]) -> None:
    """Write two small JPEGs of each picture: name.jpg with the detections, name_truth.jpg with the ground truth.

    The folder is made, and emptied of earlier examples."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.jpg"):
        path.unlink()
    colours = class_colours(class_names)
    for name, picture in pictures.items():
        for marks, suffix in ((picture.found(colours), ""), (picture.truth(colours), "_truth")):
            save_jpeg(
                folder / f"{name}{suffix}.jpg",
                draw_marks(picture.image, marks, EXAMPLE_SIDE),
                quality=85,
                optimize=True,
            )


def save_jpeg(path: Path, image: Image.Image, **options: object) -> None:
    """Write a JPEG that `is_ours` recognises, without chroma subsampling, which would smear coloured lines."""
    write_whole(path, lambda file: image.save(file, "JPEG", subsampling=0, comment=MADE_BY, **options))
