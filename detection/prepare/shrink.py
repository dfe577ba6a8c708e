"""Copy a data set with smaller images, which take less disk space and decode faster in every epoch.

Every annotations/instances_X.json is copied byte for byte, so boxes, detections and scores stay in pixels of the
original images. The images are written as JPEGs, even if their names end in a different suffix. Images that are small
enough are copied unchanged. The file `shrunk.json` in an image folder marks the images as shrunken copies.

After an interruption, run the command again to continue. The annotations are copied last, so that an incomplete copy
cannot be trained on. Existing copies are never rewritten: if the originals change, use a new folder.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from PIL import Image

from data import DatasetError
from detection.coco.annotations import CocoFile, read_coco
from detection.coco.dataset import read_file
from detection.coco.image_files import SHRUNK, ImageFile, read_short_side, shrunk_size
from detection.prepare.images import for_each
from detection.prepare.layouts import find_images_dir
from engine.files import write_atomically, write_text

JPEG_QUALITY = 92


def main(arguments: argparse.Namespace) -> None:
    """Run the `shrink` command. Raises DatasetError if the data set cannot be shrunk."""
    print(shrink(arguments.root, arguments.to, arguments.short_side, arguments.workers))


def shrink(root: Path, target: Path, short_side: int, workers: int) -> str:
    """Shrink a data set into the folder `target`, or continue an interrupted run; return a one-line summary.

    Raises DatasetError if the data set is invalid, an image cannot be decoded, or `target` contains other files."""
    texts = {path: path.read_bytes() for path in sorted((root / "annotations").glob("instances_*.json"))}
    if not texts:
        raise DatasetError(f"{root}: no annotations/instances_*.json found; expected the root folder of a data set")
    for path in texts:
        if not (images := find_images_dir(path)).is_dir():
            raise DatasetError(f"{path}: missing image folder {images}; put the images there, or link to them")
    copies = {}  # from CocoFile to the folder for the copies of its images
    for coco in [read_coco(path, find_images_dir(path)) for path in texts]:
        copied_path = target / "annotations" / coco.annotations_path.name
        if copied_path.exists() and copied_path.read_bytes() != texts[coco.annotations_path]:
            raise DatasetError(f"{copied_path}: differs from the original annotations; choose a new folder with --to")
        copies[coco] = target / coco.images_dir.relative_to(root.absolute())
    number = sum(len(coco.images) for coco in copies)
    print(f"copying {number:,} images to {target} (--to changes this folder), short side at most {short_side} pixels")
    for coco, copy in copies.items():
        _mark_copies(coco, copy, short_side)

    files = {
        copy / image.file_name: coco.file(index)
        for coco, copy in copies.items()
        for index, image in enumerate(coco.images)
    }
    missing = [(file, path) for path, file in files.items() if not path.exists()]
    for _ in for_each(partial(shrink_image, short_side), missing, workers, "shrinking images"):
        pass

    (target / "annotations").mkdir(exist_ok=True)
    for path, text in texts.items():
        write_atomically(target / "annotations" / path.name, lambda file, text=text: file.write(text))
    before, after = (sum(path.stat().st_size for path in paths) for paths in ([f.path for f in files.values()], files))
    return (
        f"{target}: {len(files)} images ({len(files) - len(missing)} from an earlier run), {after / 2**20:.0f} MiB "
        f"instead of {before / 2**20:.0f} MiB; train with data.root={target}"
    )


def shrink_image(short_side: int, file_and_copy: tuple[ImageFile, Path]) -> None:
    """Write the shrunken copy of one image, completely or not at all.

    Raises DatasetError naming the image if it cannot be decoded or does not have the annotated size."""
    file, copy = file_and_copy
    pixels = read_file(file)
    copy.parent.mkdir(parents=True, exist_ok=True)
    size = shrunk_size(file.size, short_side)
    if size == file.size:
        write_atomically(copy, lambda target: target.write(file.path.read_bytes()), sync=False)
    else:
        image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        write_atomically(copy, lambda target: image.save(target, "JPEG", quality=JPEG_QUALITY), sync=False)


def _mark_copies(coco: CocoFile, copy: Path, short_side: int) -> None:
    """Create the folder for the copies and write its `shrunk.json`.

    Raises DatasetError if the images are already shrunken, or if the folder contains other files or other copies."""
    if coco.short_side is not None:
        raise DatasetError(f"{coco.images_dir}: copies with a short side of {coco.short_side}; shrink the originals")
    copy.mkdir(parents=True, exist_ok=True)
    found = read_short_side(copy)
    if found is None and any(copy.iterdir()):
        raise DatasetError(f"{copy}: not empty, but has no {SHRUNK}; choose a new folder with --to")
    if found not in (None, short_side):
        raise DatasetError(f"{copy}: copies with short side {found}, not {short_side}; choose a new folder with --to")
    write_text(copy / SHRUNK, json.dumps({"short_side": short_side}) + "\n")
