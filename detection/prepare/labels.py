"""What the converters of all formats share: labelled images, the files of a folder, the choice of the halves."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags

from data import IMAGE_SUFFIXES, DatasetError, opened_image

HALVES = ("train", "val")
WHOLE = "all"  # the name of a data set that is not split into halves
# What the halves are called. Tried in this order.
SPLITS = {"train": ("train2017", "train2014", "train"), "val": ("val2017", "val2014", "val", "validation", "valid")}
CONTAINERS = ("annotations", "images", "jpegimages", "labels")  # folders that are not named after a half
CUT = "boxes cut at the edge of their image"

Box = tuple[float, float, float, float]  # x and y of two corners, pixels


class LabelledObject(NamedTuple):
    """An object of an image."""

    class_name: str
    box_xyxy: Box  # within the image
    is_crowd: bool = False
    outline: tuple[float, ...] = ()  # x, y, x, y, ... of a polygon, pixels; empty if there is none


class LabelledImage(NamedTuple):
    """An image with its objects."""

    path: Path  # a `full_path`
    size: tuple[int, int]  # width and height in pixels, as its boxes see it
    objects: list[LabelledObject]


class Labels(NamedTuple):
    """A data set whose files are found, but not read yet."""

    halves: dict[str, list[Path]]  # of "train" and "val", or of "all"; a file for each image
    # Reads one of these files, and counts in the Counter what it changes. Raises DatasetError naming the file.
    read: Callable[[Path, Counter[str]], LabelledImage]
    categories: dict[int, str] | None = None  # category id to name; None: all that are found, with ids from 1
    defects: Sequence[str] = ()


# ---- the files of a folder ----------------------------------------------------------------------------------------


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return what matches in a folder, 2 before 10; hidden files and folders (.ipynb_checkpoints, ._*) are left out."""
    found = [
        path
        for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", str(path))])


def images_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the image files that match in a folder."""
    paths = map(full_path, visible(folder, pattern))
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def full_path(path: Path) -> Path:
    """Return a path that is absolute and without `..`, to compare with folders; links are not followed."""
    return Path(os.path.normpath(path.absolute()))


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return width and height of an image as stored, and as its EXIF orientation turns it; from its header alone.

    Raises DatasetError, naming the file, if it is not an image, or if JSON cannot hold its name."""
    if os.fsencode(path).decode(errors="ignore") != str(path):
        raise DatasetError(f"{path}: its name is not UTF-8 text, as JSON needs it; rename it")
    try:
        with opened_image(path) as image:
            # Asking a PNG for its orientation decodes it.
            orientation = 1 if image.format == "PNG" else image.getexif().get(ExifTags.Base.Orientation, 1)
            return image.size, image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, with their numbers, from 1.

    Raises DatasetError, naming the file, if it cannot be read as text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text, see byte {error.start}") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def sibling_folder(folder: Path, name: str, other: str) -> Path:
    """Return a folder with the last part called `name` replaced, such as x/labels/train for x/images/train."""
    parts = list(folder.parts)
    if name in parts:
        parts[len(parts) - 1 - parts[::-1].index(name)] = other
    return Path(*parts)


# ---- the choice of the halves -------------------------------------------------------------------------------------


def grouped(root: Path, paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Return files by the half that their folder is named after; "." for those in no such folder.

    So train/images/a.jpg, images/train/a.jpg and images/train/more/a.jpg belong to `train`."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(group_of(path.parent.relative_to(root)), []).append(path)
    return groups


def group_of(folder: Path) -> str:
    """Return the first part of a folder that is not a CONTAINER; "." if there is none."""
    return next((part for part in folder.parts if part.lower() not in CONTAINERS), ".")


def files_at(
    name: str, bases: Iterable[Path], groups: Mapping[str, list[Path]], read: Callable[[Path], list[Path]]
) -> list[Path]:
    """Return the files of a group, a folder or a text file; empty if there is no such thing. read: for the latter two.

    A folder that is not there is taken by its group: Roboflow's exports say ../train/images and mean train/images."""
    if name in groups:
        return groups[name]
    place = next((path for path in (base / name for base in bases) if path.exists()), None)
    return read(place) if place else groups.get(group_of(Path(name.removeprefix("../"))), [])


def choose_halves(
    source: Path,
    given: Mapping[str, str | None],
    named: Mapping[str, list[Path]],
    groups: Mapping[str, list[Path]],
    read: Callable[[Path], list[Path]],
) -> dict[str, list[Path]]:
    """Return the files of train and val; or all files, under WHOLE, if there is only one group that could be a half.

    given: on the command line, see `files_at`. named: by the data set itself; a half that it does not name is looked
    for under the usual names.
    Raises DatasetError, naming the options to give, if a half is not found, or val has no file of its own."""
    found: dict[str, list[Path]] = {}
    for half in HALVES:
        if name := given[half]:
            found[half] = files_at(name, (source, Path()), groups, read)
        elif half in named:
            found[half] = named[half]
        else:
            found[half] = next((groups[name] for name in SPLITS[half] if name in groups), [])
    used = set().union(*found.values())
    others = {name: paths for name, paths in groups.items() if used.isdisjoint(paths)}
    missing = [half for half in HALVES if not found[half]]
    if not missing and not set(found["val"]) <= set(found["train"]):
        return found
    candidates = [paths for paths in found.values() if paths] + list(others.values())
    if missing and len(candidates) == 1 and not any(given[half] for half in missing):
        return {WHOLE: candidates[0]}
    names = "|".join(others) or "FOLDER_OR_LIST"
    cure = f"give {' and '.join(f'--{half} {names}' for half in missing or ['val'])}"
    if missing:
        what = " and no ".join(given[half] or half for half in missing)
        raise DatasetError(f"{source}: no {what} found, or it is empty; {cure}")
    raise DatasetError(
        f"{source}: all {len(found['val'])} files of val are also in train; {cure}, or name no val: then all are "
        "converted into one annotation file, which `python -m detection.data split` divides"
    )


def cut_to_image(box_xyxy: Box, size: tuple[int, int], notes: Counter[str]) -> Box:
    """Return the part of a box that is within its image; notes: counts boxes that lose a pixel or more.

    Raises ValueError if there is none."""
    left, top, right, bottom = box_xyxy
    width, height = size
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        shown = ", ".join(f"{edge:g}" for edge in box_xyxy)
        raise ValueError(f"a box from corner to corner of {shown} pixels is outside its image of {width} x {height}")
    cut = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    notes[CUT] += any(abs(after - before) >= 1 for after, before in zip(cut, box_xyxy, strict=True))
    return cut
