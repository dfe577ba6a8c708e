"""Locate the image files that an annotation file lists, and report missing and empty files.

Files outside the image folder are never opened: a `file_name` that is absolute or contains `..` is a defect. Only
regular files are opened; symbolic links are followed. A folder that contains `shrunk.json` holds shrunken copies of the
images (detection/prepare/shrink.py). Annotations and scores still use the pixel coordinates of the originals.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from data import DatasetError
from detection.coco.defects import Defect, has_size, is_outside_folder

FOLDER_CURE = "set data.train.images and data.val.images, or --images for `python -m detection.data check FILE.json`"
SHRUNK = "shrunk.json"  # marks a folder of shrunken copies: {"short_side": pixels}


class ImageFile(NamedTuple):
    """An image file on disk, with the id and size from its record, which may have defects."""

    id: Any
    path: Path
    size: tuple[int, int] | None  # expected width and height in pixels; None if the record has no valid size
    is_shrunk: bool = False  # the file is a shrunken copy, and `size` is the size of the copy

    def defect(self, what: str, is_warning: bool = False) -> Defect:
        """Return a defect that concerns the content of this file."""
        return Defect(self.path, f"image id {self.id!r:.50}", what, is_warning)


def image_file(image_id: Any, path: Path, size: tuple[int, int] | None, short_side: int | None) -> ImageFile:
    """Return an ImageFile. size: of the original image. short_side: of the shrunken copy; None for an original."""
    if size is None or short_side is None:
        return ImageFile(image_id, path, size)
    return ImageFile(image_id, path, shrunk_size(size, short_side), is_shrunk=True)


def shrunk_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return the width and height of an image shrunk to `short_side` pixels; smaller images are not enlarged."""
    scale = min(1.0, short_side / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def read_short_side(images_dir: Path) -> int | None:
    """Return the short side, in pixels, of the shrunken copies in a folder; None if it has no `shrunk.json`.

    Raises DatasetError if that file is invalid; the message gives the reason but not the path."""
    if not (images_dir / SHRUNK).exists():
        return None
    try:
        short_side = json.loads((images_dir / SHRUNK).read_bytes())["short_side"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f'cannot be read: {error!r:.100}; expected {{"short_side": PIXELS}}') from None
    if type(short_side) is not int or short_side < 1:
        raise DatasetError(f"short_side is {short_side!r:.50}, expected an integer above 0")
    return short_side


def find_files(
    records: list, images_dir: Path, short_side: int | None, report: Callable[[str, str], None]
) -> list[ImageFile]:
    """Return the image files that exist and are not empty. Call report(record, what) for each missing or empty file."""
    if records and not os.path.isdir(images_dir):
        report("", f"image folder {images_dir}: no such folder; {FOLDER_CURE}")
        return []
    listings: dict[Path, dict[str, int]] = {}
    files = []
    for position, record in enumerate(records):
        name = record.get("file_name") if isinstance(record, dict) else None
        if not isinstance(name, str) or is_outside_folder(name):
            continue
        folder = images_dir / PurePath(name).parent
        if folder not in listings:
            listings[folder] = _list_sizes(folder)
        if num_bytes := listings[folder].get(PurePath(name).name):
            size = (record["width"], record["height"]) if has_size(record) else None
            files.append(image_file(record.get("id"), images_dir / name, size, short_side))
        else:
            what = f"no such file in {images_dir}" if num_bytes is None else "the file is empty"
            report(f"images[{position}] (id {record.get('id')!r:.50})", f"file_name {name!r}: {what}; restore the file")
    return files


def _list_sizes(folder: Path) -> dict[str, int]:
    """Return a dict from file name to size in bytes for a folder. This is faster than checking each file separately."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a folder name with a null character
        return {}
