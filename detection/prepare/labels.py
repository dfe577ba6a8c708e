"""Labelled images as the converters hand them on, whatever format they come from, and what is found on the way."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags

from data import IMAGE_SUFFIXES, DatasetError, opened_image
from detection.coco.annotations import Defect

Box = tuple[float, float, float, float]  # x and y of two corners, pixels


class LabelledObject(NamedTuple):
    """An object of an image."""

    class_name: str
    box_xyxy: Box  # within the image
    is_crowd: bool = False
    outline: tuple[float, ...] = ()  # x, y, x, y, ... of a polygon, pixels; empty if there is none


class LabelledImage(NamedTuple):
    """An image with what is in it."""

    path: Path  # a `full_path`
    size: tuple[int, int]  # width and height in pixels, as its boxes see it
    objects: list[LabelledObject]


class Labels(NamedTuple):
    """A data set."""

    categories: dict[int, str]  # category id to name
    halves: dict[str, list[LabelledImage]]  # of "train" and "val"


class Findings:
    """What cannot be converted, and how often something was converted, but not as it stands there."""

    def __init__(self) -> None:
        self.defects: list[Defect] = []
        self.notes: Counter[str] = Counter()  # by what was done, said of many

    def defect(self, path: Path, line: int | None, what: str) -> None:
        """line: where in the file, from 1; None for the file as a whole."""
        self.defects.append(Defect(path, f"line {line}" if line else "", what))


def full_path(path: Path) -> Path:
    """Absolute and without `..`, so that it tells which folders it lies below; links are not followed."""
    return Path(os.path.normpath(path.absolute()))


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of an image as it is stored, and as its EXIF orientation turns it; from its header alone.

    Raises DatasetError, saying why but not where, if it is no image, or one that JSON cannot name."""
    if os.fsencode(path).decode(errors="ignore") != str(path):
        raise DatasetError("its name is not UTF-8 text, as JSON needs it; rename it")
    with opened_image(path) as image:
        # To ask a PNG for its orientation is to decode it.
        orientation = 1 if image.format == "PNG" else image.getexif().get(ExifTags.Base.Orientation, 1)
        return image.size, image.size[::-1] if orientation in (5, 6, 7, 8) else image.size


def images_below(folder: Path) -> list[Path]:
    """Every image file in a folder and its subfolders, in the order of people: 2 before 10."""
    return sorted(filter(is_image, folder.rglob("*")), key=in_order)


def is_image(path: Path) -> bool:
    """Whether a file is called an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def in_order(path: Path) -> list:
    """A key to sort paths by, in the order of people."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def cut_to_image(box_xyxy: Box, size: tuple[int, int], notes: Counter[str]) -> Box:
    """The part of a box that is within its image; notes: counts those that lose a pixel or more.

    Raises ValueError if no part is."""
    left, top, right, bottom = box_xyxy
    width, height = size
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        shown = ", ".join(f"{edge:g}" for edge in box_xyxy)
        raise ValueError(f"a box from corner to corner of {shown} pixels lies outside its image of {width} x {height}")
    cut = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if any(abs(after - before) >= 1 for after, before in zip(cut, box_xyxy, strict=True)):
        notes["boxes cut at the edge of their image"] += 1
    return cut


def read_list(path: Path) -> list[tuple[int, str]]:
    """`lines_of` a file of images or classes, with errors that say where."""
    try:
        return list(lines_of(path))
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers, from 1.

    Raises DatasetError, saying why but not where, if it cannot be read as text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"not UTF-8 text, see byte {error.start}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()
