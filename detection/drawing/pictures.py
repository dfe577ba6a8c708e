"""Draw images side by side with their ground truth and detections, for visual inspection."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from detection.coco.annotations import CocoFile
from detection.coco.dataset import read_image
from detection.drawing.boxes import Colour, Mark, draw_marks, draw_text, palette_colour, rgb
from engine.charts import MADE_BY, save_png
from engine.files import write_atomically
from engine.logbook import progress_bar

EXAMPLES = 4  # images in detections.png
SHOWN_SCORE = 0.3  # detections with a lower score are not drawn
PANEL_SIDE = 400  # pixels, width of a panel in detections.png
EXAMPLE_SIDE = 320  # pixels, longer side of an example
LINE = 26  # pixels, height of a caption
GAP = 6  # pixels between panels


class Example(NamedTuple):
    """One image of a data set with its ground truth and its detections."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    name: str
    truth: Sequence[Mark]
    detections: Sequence[Mark]  # best first


class Panel(NamedTuple):
    """One image with a caption and with marks to draw on it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    caption: str
    marks: Sequence[Mark]  # the first are drawn on top
    dots_xy: np.ndarray = np.empty((0, 2))  # (m, 2) points to draw, pixels


def examples(coco: CocoFile, results: np.ndarray) -> dict[str, Example]:
    """Return a dict from image id to Example, for EXAMPLES images spread evenly over a data set.

    results: (N, 7) from DetectionTask.detect_all, highest score first; scores below SHOWN_SCORE are ignored."""
    label_of = {category_id: label for label, category_id in enumerate(coco.category_ids, start=1)}
    chosen = {}
    for index in spread(len(coco.images), EXAMPLES):
        image = coco.images[index]
        shown = results[(results[:, 0] == image.id) & (results[:, 5] >= SHOWN_SCORE)]
        detections = []
        for x, y, width, height, score, category_id in shown[:, 1:].tolist():
            label = label_of[category_id]
            text = f"{coco.class_names[label - 1]} {score:.2f}"
            detections.append(Mark(np.array([x, y, x + width, y + height]), palette_colour(label - 1), text))
        truth = object_marks(coco.class_names, *coco.objects(index))
        chosen[str(image.id)] = Example(read_image(coco, index), image.file_name, truth, detections)
    return chosen


def spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` indices, spread evenly from 0 to count - 1."""
    return np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist()


def object_marks(
    class_names: Sequence[str], boxes_xyxy: np.ndarray, labels: Sequence[int], is_crowd: Sequence[bool]
) -> list[Mark]:
    """Return marks for boxes (n, 4) with the name and colour of their class, small boxes on top; crowds are dashed."""
    marks = []
    for box_xyxy, label, crowd in zip(boxes_xyxy, labels, is_crowd, strict=True):
        text = class_names[label - 1] + (" (crowd)" if crowd else "")
        marks.append(Mark(box_xyxy, palette_colour(label - 1), text, bool(crowd)))
    return small_first(marks)


def small_first(marks: Iterable[Mark]) -> list[Mark]:
    """Sort marks so that small boxes are drawn on top of large boxes, and boxes without a label below all others."""
    return sorted(marks, key=lambda mark: (not mark.label, np.prod(mark.box_xyxy[2:] - mark.box_xyxy[:2])))


def draw_detections(path: Path, pictures: Sequence[Example]) -> None:
    """Write a PNG with two panels per image: ground truth on the left, detections with scores on the right."""
    panels = []
    for picture in pictures:
        caption = f"{'' if picture.detections else 'no '}detections with score ≥ {SHOWN_SCORE:g}"
        panels.append(Panel(picture.image, f"{picture.name}: ground truth", picture.truth))
        panels.append(Panel(picture.image, caption, picture.detections))
    drawn = lay_out(panels, columns=4 if len(pictures) > 3 else 2, side=PANEL_SIDE)
    # Experiment records are committed, so save space: a palette of 256 colours takes a third of the bytes. MAXCOVERAGE
    # spreads the palette over all colours; the most frequent 256 colours could lack the colour of a small label.
    palette = drawn.quantize(256, Image.Quantize.MAXCOVERAGE)
    save_png(path, drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))


def draw_panels(
    path: Path, panels: Sequence[Panel], columns: int, side: int, key: Mapping[str, Colour] | None = None
) -> None:
    """Write a PNG of the panels, arranged by `lay_out`."""
    bar = progress_bar(panels, desc=f"drawing {path.name}", unit="panel", leave=False)
    save_png(path, lay_out(bar, columns, side, key))


def lay_out(panels: Iterable[Panel], columns: int, side: int, key: Mapping[str, Colour] | None = None) -> Image.Image:
    """Arrange panels in rows, each image below its caption.

    side: width of a panel and longer side of its image, pixels. key: legend above the panels, {meaning: colour}."""
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
        picture.paste((190, 190, 190), (0, 0, picture.width, LINE))  # grey, because a colour of the key can be white
    left = 0
    for name, colour in (key or {}).items():
        ImageDraw.Draw(picture).rectangle((left + 6, 8, left + 28, LINE - 9), fill=rgb(colour))
        left = round(draw_text(picture, (left + 34, LINE / 2), name)) + 8
    for row in rows:
        for column, cell in enumerate(row):
            picture.paste(cell, (column * (side + GAP), top))
        top += max(cell.height for cell in row) + GAP
    return picture


def draw_examples(folder: Path, pictures: Mapping[str, Example]) -> None:
    """Write two small JPEGs per image: name.jpg with detections and name_truth.jpg with ground truth.

    Creates the folder and deletes the JPEGs that are already in it."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.jpg"):
        path.unlink()
    for name, picture in pictures.items():
        for marks, suffix in ((picture.detections, ""), (picture.truth, "_truth")):
            drawn = draw_marks(picture.image, marks, EXAMPLE_SIDE)
            save_jpeg(folder / f"{name}{suffix}.jpg", drawn, quality=85, optimize=True)


def save_jpeg(path: Path, image: Image.Image, **options: object) -> None:
    """Write a JPEG that `is_ours` recognises. Chroma subsampling is off, because it would blur coloured lines."""
    write_atomically(path, lambda file: image.save(file, "JPEG", subsampling=0, comment=MADE_BY, **options))
