"""Detections drawn over an image in its own resolution, fast enough for videos.

(detection.pictures sets images side by side, with the truth, as figures.) Boxes and letters grow with the image.
Labels look for a place beside their box where they hide no other label; in a crowd the surest have the first choice.
"""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detection.detector import Detections
from detection.pictures import palette_colour

LEAST_SIDE, MOST_SIDE = 800, 8192  # pixels, of the longer side: smaller and larger images are resized to these
LINE_PER_SIDE, LETTERS_PER_SIDE = 1 / 260, 1 / 52  # sizes, as shares of the longer side
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

    labels, taken = [], np.empty((0, 4))
    for name, score, box, colour in zip(found.class_names, found.scores, boxes, colours, strict=True):
        text = f"{name} {score:.2f}"
        width, height = font.getlength(text) + 0.6 * font.size, 1.35 * font.size
        place, hidden = _place(box, (width, height), picture.size, taken)
        if hidden <= MOST_HIDDEN:
            labels.append((text, place, colour))
            taken = np.concatenate([taken, place[None]])
    for text, (x0, y0, x1, y1), colour in reversed(labels):
        canvas.rounded_rectangle((x0, y0, x1, y1), radius=0.25 * font.size, fill=(*colour, 225))
        ink = "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 128 else "white"
        canvas.text((x0 + 0.3 * font.size, (y0 + y1) / 2), text, fill=ink, font=font, anchor="lm")
    return picture


def _place(
    box_xyxy: np.ndarray, label_size: tuple[float, float], image_size: tuple[int, int], taken: np.ndarray
) -> tuple[np.ndarray, float]:
    """Where a label hides least of those that have their places, `taken` (n, 4), and what share of it overlaps them.

    Over the box, in its upper corners, under it, in its lower corners; always on the image. Returns (4,), xyxy."""
    (x0, y0, x1, y1), (width, height) = box_xyxy, label_size
    lefts, tops = (x0, x1 - width), (y0 - height, y0, y1, y1 - height)
    corners = np.array([(left, top) for top in tops for left in lefts], float)
    corners = corners.clip(0, np.maximum(0, np.subtract(image_size, label_size)))
    places = np.concatenate([corners, corners + label_size], axis=1)  # (8, 4)
    sides = np.minimum(places[:, None, 2:], taken[:, 2:]) - np.maximum(places[:, None, :2], taken[:, :2])
    hidden = sides.clip(0).prod(axis=2).sum(axis=1) / (width * height)  # (8,)
    best = hidden.argmin()
    return places[best], hidden[best]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib and has the letters of most alphabets."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
