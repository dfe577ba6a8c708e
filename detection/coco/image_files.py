"""The image files that an annotation file names: where they are, and which of them are missing or empty.

Nothing outside the image folder can be named: a `file_name` that is absolute or has `..` in it is a defect and is never
opened, and neither is anything but a regular file. Symbolic links are followed. A folder with `shrunk.json` in it holds
copies with that short side (detection/prepare/shrink.py); annotations and scores stay in the pixels of the originals.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from data import DatasetError
from detection.coco.defects import Defect, has_size, leads_out

WHERE = "say where it is: by data.train.images and data.val.images, or to the check of a file by --images"
SHRUNK = "shrunk.json"  # marks a folder of shrunken copies: {"short_side": pixels}


class ImageFile(NamedTuple):
    """An image file on the disk, under the id of its record, whatever else is wrong with that."""

    id: Any
    path: Path
    size: tuple[int, int] | None  # width and height in pixels, None if the record gives none
    is_shrunk: bool = False  # if so, `size` is that of the copy

    def defect(self, what: str, is_warning: bool = False) -> Defect:
        """Return a defect of the content of the file."""
        return Defect(self.path, f"image id {self.id!r:.50}", what, is_warning)


def image_file(image_id: Any, path: Path, size: tuple[int, int] | None, short_side: int | None) -> ImageFile:
    """Return the file of an image. size: of the original. short_side: of shrunken copies, None for originals."""
    if size is None or short_side is None:
        return ImageFile(image_id, path, size)
    return ImageFile(image_id, path, shrunk_size(size, short_side), is_shrunk=True)


def shrunk_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return width and height of a copy with that short side in pixels; a smaller image keeps its own."""
    scale = min(1.0, short_side / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def read_short_side(images_dir: Path) -> int | None:
    """Return the short side of the shrunken copies in a folder, pixels; None if it holds no `shrunk.json`.

    Raises DatasetError, saying why but not where, if that is not what detection.prepare.shrink writes."""
    if not (images_dir / SHRUNK).exists():
        return None
    try:
        short_side = json.loads((images_dir / SHRUNK).read_bytes())["short_side"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"cannot be read: {error!r:.100}") from None
    if type(short_side) is not int or short_side < 1:
        raise DatasetError(f"short_side {short_side!r:.50}, expected a whole number above 0")
    return short_side


def find_files(
    records: list, images_dir: Path, short_side: int | None, report: Callable[[str, str], None]
) -> list[ImageFile]:
    """Return the image files that are in their folder and not empty; report(record, what) gets the others."""
    if records and not os.path.isdir(images_dir):
        report("", f"its image folder {images_dir}: no such folder; {WHERE}")
        return []
    listings: dict[Path, dict[str, int]] = {}
    files = []
    for position, record in enumerate(records):
        name = record.get("file_name") if isinstance(record, dict) else None
        if not isinstance(name, str) or leads_out(name):
            continue
        folder = images_dir / PurePath(name).parent
        if folder not in listings:
            listings[folder] = _list_sizes(folder)
        if num_bytes := listings[folder].get(PurePath(name).name):
            size = (record["width"], record["height"]) if has_size(record) else None
            files.append(image_file(record.get("id"), images_dir / name, size, short_side))
        else:
            what = f"no such file in {images_dir}" if num_bytes is None else "empty, 0 bytes"
            report(f"images[{position}] (id {record.get('id')!r:.50})", f"file_name {name!r}: {what}")
    return files


def _list_sizes(folder: Path) -> dict[str, int]:
    """The files of a folder with their sizes, bytes: faster than looking for each of 100,000 names in it."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a name that no folder can have
        return {}
