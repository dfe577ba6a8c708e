"""Detections drawn over an image in its own resolution, fast enough for videos.

(Beside it, pictures sets images side by side, with the truth, as figures.) Boxes and letters grow with the image.
Labels look for a place beside their box where they hide no other label; in a crowd the surest have the first choice.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from detection.coco.detections import Detections
from detection.drawing.pictures import palette_colour, place_label

LEAST_SIDE, MOST_SIDE = 800, 8192  # pixels, of the longer side: smaller and larger images are resized to these
LINE_PER_SIDE, LETTERS_PER_SIDE = 1 / 260, 1 / 52  # sizes, as shares of the longer side
# DejaVu, which comes with matplotlib and has the letters of most alphabets, but not those of East Asia.
FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
MOST_HIDDEN = 0.3  # share of its area that other labels may take from one; beyond that it is left out, the box stays


def draw_found(pixels: np.ndarray, found: Detections) -> Image.Image:
    """A picture with the detections in it, the surest on top; a class has the same colour on every image.

    pixels: (H, W, 3) uint8 RGB, the image that the boxes are of."""
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    scale = min(max(longest, LEAST_SIDE), MOST_SIDE) / longest
    if scale != 1:
        size = [max(1, round(side * scale)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    line = max(2, round(scale * longest * LINE_PER_SIDE))
    font = _font(round(scale * longest * LETTERS_PER_SIDE))
    canvas = ImageDraw.Draw(picture, "RGBA")
    boxes = (found.boxes_xyxy * scale).round().astype(int)
    colours = [tuple(round(255 * value) for value in palette_colour(label - 1)) for label in found.labels]
    for (x0, y0, x1, y1), colour in zip(boxes[::-1].tolist(), colours[::-1], strict=True):
        x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)  # the last pixel inside
        canvas.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 120), width=line + 2)  # for light images
        canvas.rectangle((x0, y0, x1, y1), outline=colour, width=line)

    labels, taken = [], []
    for name, score, box, colour in zip(found.class_names, found.scores, boxes, colours, strict=True):
        text = f"{_printable(name)} {score:.2f}"
        width, height = font.getlength(text) + 0.6 * font.size, 1.35 * font.size
        place, hidden = place_label(box, (width, height), (0, 0, *picture.size), taken)
        if hidden <= MOST_HIDDEN:
            labels.append((text, place, colour))
            taken.append(place)
    for text, (x0, y0, x1, y1), colour in reversed(labels):
        canvas.rounded_rectangle((x0, y0, x1, y1), radius=0.25 * font.size, fill=(*colour, 225))
        ink = "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 128 else "white"
        canvas.text((x0 + 0.3 * font.size, (y0 + y1) / 2), text, fill=ink, font=font, anchor="lm")
    return picture


def undrawable(names: Sequence[str]) -> list[str]:
    """Those of the names that have letters which the font of labels lacks."""
    drawn = FT2Font(FONT).get_charmap()
    return [name for name in map(_printable, names) if any(ord(letter) not in drawn for letter in name)]


def _printable(text: str) -> str:
    """Without line ends and other signs that are not drawn."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)
