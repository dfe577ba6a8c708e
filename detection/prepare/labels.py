"""Helpers of the converters of all formats: labelled images, file lists, and the choice of train and val."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags

from data import IMAGE_SUFFIXES, DatasetError, open_image

SPLITS = ("train", "val")
UNSPLIT = "all"  # stands for the split if a data set has no train and val
# Usual folder names of each split, tried in this order.
ALIASES = {"train": ("train2017", "train2014", "train"), "val": ("val2017", "val2014", "val", "validation", "valid")}
CONTAINERS = ("annotations", "images", "jpegimages", "labels")  # folder names that do not name a split
CLIPPED = "boxes clipped at the edge of their image"

Box = tuple[float, float, float, float]  # x and y of two corners, pixels


class LabelledObject(NamedTuple):
    """An annotated object."""

    class_name: str
    box_xyxy: Box  # clipped to the image
    is_crowd: bool = False
    outline: tuple[float, ...] = ()  # polygon corners x, y, x, y, ... in pixels; empty if there is no outline


class LabelledImage(NamedTuple):
    """An image with its objects."""

    path: Path  # from `full_path`
    size: tuple[int, int]  # width and height in pixels, in the orientation that the boxes refer to
    objects: list[LabelledObject]


class Labels(NamedTuple):
    """The files of a data set, found but not read yet."""

    splits: dict[str, list[Path]]  # keys "train" and "val", or only "all"; one file per image
    # Read one of these files and count each kind of change in the Counter. Raises DatasetError naming the file.
    read: Callable[[Path, Counter[str]], LabelledImage]
    categories: dict[int, str] | None = None  # category id to name; None: all names found, with ids from 1
    defects: Sequence[str] = ()  # found without reading the files


# ---- files --------------------------------------------------------------------------------------------------------


def visible_paths(folder: Path, pattern: str) -> list[Path]:
    """Return matching paths in a folder, in natural order (2 before 10), without hidden ones (.ipynb_checkpoints)."""
    found = [
        path
        for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", str(path))])


def images_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the image files in a folder that match a pattern."""
    paths = map(full_path, visible_paths(folder, pattern))
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def full_path(path: Path) -> Path:
    """Return the absolute path without `..`, so that paths can be compared. Symbolic links are not followed."""
    return Path(os.path.normpath(path.absolute()))


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) of an image as stored, and after its EXIF rotation. Only the header is read.

    Raises DatasetError, naming the file, if it is not an image, or if its name is not valid UTF-8."""
    if os.fsencode(path).decode(errors="ignore") != str(path):
        raise DatasetError(f"{path}: the file name is not valid UTF-8, which JSON requires; rename the file")
    try:
        with open_image(path) as image:
            # getexif() would decode a whole PNG.
            orientation = 1 if image.format == "PNG" else image.getexif().get(ExifTags.Base.Orientation, 1)
            return image.size, image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return (line number from 1, stripped line) of each line of a text file that is not blank.

    Raises DatasetError, naming the file, if it cannot be read as UTF-8 text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text: invalid byte at offset {error.start}") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def sibling_folder(folder: Path, name: str, sibling: str) -> Path:
    """Replace the last part of a path that is `name`: x/images/train becomes x/labels/train."""
    parts = list(folder.parts)
    if name in parts:
        parts[len(parts) - 1 - parts[::-1].index(name)] = sibling
    return Path(*parts)


# ---- train and val ------------------------------------------------------------------------------------------------


def group_by_folder(root: Path, paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by `group_name`: train/images/a.jpg and images/train/more/a.jpg are both in `train`."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(group_name(path.parent.relative_to(root)), []).append(path)
    return groups


def group_name(folder: Path) -> str:
    """Return the group that a relative folder belongs to: its first part that is not one of CONTAINERS, or "."."""
    return next((part for part in folder.parts if part.lower() not in CONTAINERS), ".")


def resolve_files(
    name: str, bases: Iterable[Path], groups: Mapping[str, list[Path]], read: Callable[[Path], list[Path]]
) -> list[Path]:
    """Return the files that `name` refers to: a group, a folder or a text file. Empty if nothing has this name.

    bases: folders that `name` may be relative to. read: returns the files of a folder or text file.
    A missing folder falls back to its group: Roboflow's exports say ../train/images and mean train/images."""
    if name in groups:
        return groups[name]
    place = next((path for path in (base / name for base in bases) if path.exists()), None)
    return read(place) if place else groups.get(group_name(Path(name.removeprefix("../"))), [])


def find_splits(
    source: Path,
    requested: Mapping[str, str | None],
    declared: Mapping[str, list[Path]],
    groups: Mapping[str, list[Path]],
    read: Callable[[Path], list[Path]],
) -> dict[str, list[Path]]:
    """Return {"train": files, "val": files}, or {UNSPLIT: files} if the data set has a single group of files.

    requested: names from the command line, see `resolve_files`. declared: splits that the data set's own files define.
    A split that is in neither is found by its usual names (ALIASES).
    Raises DatasetError, naming the missing options, if a split is not found or every file of val is also in train."""
    found: dict[str, list[Path]] = {}
    for split in SPLITS:
        if name := requested[split]:
            found[split] = resolve_files(name, (source, Path()), groups, read)
        elif split in declared:
            found[split] = declared[split]
        else:
            found[split] = next((groups[name] for name in ALIASES[split] if name in groups), [])
    used = set().union(*found.values())
    unused = {name: paths for name, paths in groups.items() if used.isdisjoint(paths)}
    missing = [split for split in SPLITS if not found[split]]
    if not missing and not set(found["val"]) <= set(found["train"]):
        return found
    candidates = [paths for paths in found.values() if paths] + list(unused.values())
    if missing and len(candidates) == 1 and not any(requested[split] for split in missing):
        return {UNSPLIT: candidates[0]}
    names = "|".join(unused) or "FOLDER_OR_LIST"
    cure = f"give {' and '.join(f'--{split} {names}' for split in missing or ['val'])}"
    if missing:
        what = " and ".join(requested[split] or split for split in missing)
        raise DatasetError(f"{source}: {what} not found or empty; {cure}")
    raise DatasetError(
        f"{source}: all {len(found['val'])} files of val are also in train; {cure}; or remove the val split "
        "from the command line and from the data set's own files: then all images are converted into one annotation "
        "file, which `python -m detection.data split` can split"
    )


def clip_to_image(box_xyxy: Box, size: tuple[int, int], notes: Counter[str]) -> Box:
    """Clip a box to its image, and count it in `notes` if that moves an edge by a pixel or more.

    Raises ValueError if the box is outside the image."""
    left, top, right, bottom = box_xyxy
    width, height = size
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        shown = ", ".join(f"{edge:g}" for edge in box_xyxy)
        raise ValueError(f"box (x1, y1, x2, y2) = ({shown}) pixels is outside its image of {width} x {height} pixels")
    clipped = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    notes[CLIPPED] += any(abs(after - before) >= 1 for after, before in zip(clipped, box_xyxy, strict=True))
    return clipped
