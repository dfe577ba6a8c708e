"""Draw labelled boxes on images, for all pictures of objects and detections.

Line width and font size scale with the image. Each label is placed where it overlaps least with earlier labels.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageDraw, ImageFont

from detection.coco.detections import Detections
from engine.terminal import printable

MIN_SIDE, MAX_SIDE = 800, 8192  # pixels; draw_predictions resizes images whose longer side is outside this range
LINE_PER_SIDE, FONT_PER_SIDE = 1 / 260, 1 / 52  # line width and font size, as fractions of the longer side
MIN_FONT_SIZE = 11  # pixels
# DejaVu comes with matplotlib and has the letters of most alphabets, but not those of East Asia.
FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
MAX_HIDDEN = 0.3  # a label is not drawn if earlier labels cover more than this fraction; its box is still drawn

Colour = tuple[float, float, float]  # red, green, blue, each 0 to 1
UNMATCHED: Colour = (0.9, 0.1, 0.1)  # colour of objects that match no default box
LEVEL_HUES = (0.83, 0.72, 0.58, 0.48, 0.33, 0.15)  # fractions of the colour wheel; no hue is similar to UNMATCHED


class Mark(NamedTuple):
    """A box to draw on an image, in pixels of the image. The line is thin if the label is empty."""

    box_xyxy: np.ndarray  # (4,)
    colour: Colour
    label: str = ""
    is_dashed: bool = False


def draw_predictions(pixels: np.ndarray, found: Detections) -> Image.Image:
    """Draw detections on a copy of an image, resized so that labels are legible. pixels: (H, W, 3) uint8 RGB."""
    marks = [
        Mark(box_xyxy, palette_colour(label - 1), f"{name} {score:.2f}")
        for box_xyxy, label, name, score in zip(
            found.boxes_xyxy, found.labels, found.class_names, found.scores, strict=True
        )
    ]
    return draw_marks(pixels, marks, min(max(*pixels.shape[:2], MIN_SIDE), MAX_SIDE))


def draw_marks(pixels: np.ndarray, marks: Sequence[Mark], side: int) -> Image.Image:
    """Draw marks on a resized copy of an image. The first mark is on top, and its label is placed first.

    pixels: (H, W, 3) uint8 RGB. side: new length of the longer side of the image, pixels."""
    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    if scale != 1:
        picture = picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(picture, "RGBA")
    boxes_xyxy = [(np.asarray(mark.box_xyxy) * scale).round().astype(int).tolist() for mark in marks]
    for mark, box_xyxy in zip(reversed(marks), reversed(boxes_xyxy), strict=True):
        line = max(2, round(side * LINE_PER_SIDE)) if mark.label else 1
        _outline(canvas, box_xyxy, rgb(mark.colour), line, mark.is_dashed)

    font, labels, occupied = _font(max(MIN_FONT_SIZE, round(side * FONT_PER_SIDE))), [], []
    for mark, box_xyxy in zip(marks, boxes_xyxy, strict=True):
        if mark.label:
            text = printable(mark.label)
            size = font.getlength(text) + 0.6 * font.size, 1.35 * font.size
            place, hidden = place_label(box_xyxy, size, picture.size, occupied)
            if hidden <= MAX_HIDDEN:
                labels.append((text, place, rgb(mark.colour)))
                occupied.append(place)
    for text, (x0, y0, x1, y1), colour in reversed(labels):
        canvas.rounded_rectangle((x0, y0, x1, y1), radius=0.25 * font.size, fill=(*colour, 225))
        ink = "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 128 else "white"
        canvas.text((x0 + 0.3 * font.size, (y0 + y1) / 2), text, fill=ink, font=font, anchor="lm")
    return picture


def _outline(canvas: ImageDraw.ImageDraw, box_xyxy: list[int], colour: tuple, line: int, is_dashed: bool) -> None:
    """Draw the outline of a box, over a darker and wider outline that is visible on light images."""
    x0, y0, x1, y1 = box_xyxy
    x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)  # the last pixel inside the box
    canvas.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 120), width=line + 2)
    if not is_dashed:
        canvas.rectangle((x0, y0, x1, y1), outline=colour, width=line)
        return
    far = line - 1
    for x in range(x0, x1, 6 * line):
        for y in (y0, y1 - far):
            canvas.rectangle((x, y, min(x + 4 * line, x1), y + far), fill=colour)
    for y in range(y0, y1, 6 * line):
        for x in (x0, x1 - far):
            canvas.rectangle((x, y, x + far, min(y + 4 * line, y1)), fill=colour)


def place_label(
    box_xyxy: Sequence[float], label_size: Sequence[float], image_size: Sequence[float], occupied: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Choose the place for a label that overlaps least with the labels already placed.

    Tries places above the box, inside its top corners, below it, and inside its bottom corners, all within the image.
    Sizes: (width, height). occupied: (4,) xyxy per label. Returns (4,) xyxy and the overlapping fraction."""
    (x0, y0, x1, y1), (width, height) = box_xyxy, label_size
    corners = np.array([(left, top) for top in (y0 - height, y0, y1, y1 - height) for left in (x0, x1 - width)], float)
    corners = corners.clip(0, np.maximum(0, np.subtract(image_size, label_size)))
    places = np.concatenate([corners, corners + label_size], axis=1)  # (8, 4)
    labels = np.reshape(occupied, (-1, 4))
    sides = np.minimum(places[:, None, 2:], labels[:, 2:]) - np.maximum(places[:, None, :2], labels[:, :2])
    hidden = sides.clip(0).prod(axis=2).sum(axis=1) / (width * height)  # (8,)
    best = hidden.argmin()
    return places[best], hidden[best]


def palette_colour(index: int) -> Colour:
    """Return the colour of a class. index: label - 1. About 80 classes have distinguishable colours.

    Colours alternate between vivid, pale and dark. Hues advance by the golden angle, so they are spread evenly."""
    turn, shade = divmod(int(index), 3)
    hue = (turn * (math.sqrt(5) - 1) / 2 + shade / 3) % 1
    saturation, value = ((0.95, 1.0), (0.5, 1.0), (0.95, 0.6))[shade]
    return tuple(hsv_to_rgb((hue, saturation, value)))


def level_colour(level: int) -> Colour:
    """Return the colour of the default boxes of a feature level. level: index from 0."""
    return tuple(hsv_to_rgb((LEVEL_HUES[level], 0.6, 1.0)))


def draw_text(picture: Image.Image, xy: tuple[float, float], text: str) -> float:
    """Draw a line of text on a picture; return the x coordinate of its right end. xy: left end, vertically centred."""
    font, text = _font(13), printable(text)
    ImageDraw.Draw(picture).text(xy, text, fill="black", font=font, anchor="lm")
    return xy[0] + font.getlength(text)


def rgb(colour: Colour) -> tuple[int, int, int]:
    """Convert a colour to the integers that Pillow uses, 0 to 255."""
    return tuple(round(255 * value) for value in colour)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)
