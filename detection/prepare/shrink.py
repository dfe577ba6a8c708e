"""Rewrite the images of a data set once, smaller: they take less room, and less time to decode at every epoch.

Every annotations/instances_X.json is copied byte for byte, and the images it lists become JPEGs, whatever their names
say; a smaller image is copied as it is. `shrunk.json` among the images says that width and height in the annotations
are the original's, so boxes, detections and scores stay in its pixels.

Stopped and started again, the command continues; the annotations are copied last, so nothing can be trained on half a
copy. Copies are never rewritten: after a change of the originals, shrink into a new folder.
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
from detection.prepare.layouts import image_folder
from engine.files import write_text, write_whole

JPEG_QUALITY = 92


def main(arguments: argparse.Namespace) -> None:
    """Shrink as the command line says. Raises DatasetError for a data set that cannot be used."""
    print(shrink(arguments.root, arguments.to, arguments.short_side, arguments.workers))


def shrink(root: Path, target: Path, short_side: int, workers: int) -> str:
    """Make or continue the copy of a data set in `target`; return what was done, in a sentence.

    Raises DatasetError if the data set is not sound, an image cannot be decoded, or something else is in `target`."""
    texts = {path: path.read_bytes() for path in sorted((root / "annotations").glob("instances_*.json"))}
    if not texts:
        raise DatasetError(f"{root}: no annotations/instances_*.json in it; is it the folder of a data set?")
    for path in texts:
        if not (images := image_folder(path)).is_dir():
            raise DatasetError(f"{path}: there is no folder {images} with its images; put them there, or link it")
    copies = {}  # folder of each annotation file's copies
    for coco in [read_coco(path, image_folder(path)) for path in texts]:
        there = target / "annotations" / coco.annotations_path.name
        if there.exists() and there.read_bytes() != texts[coco.annotations_path]:
            raise DatasetError(f"{there}: a different file is there; give a new folder by --to")
        copies[coco] = target / coco.images_dir.relative_to(root.absolute())
    number = sum(len(coco.images) for coco in copies)
    print(f"{number:,} images, their short sides {short_side} pixels at most, go to {target} (or where --to says)")
    for coco, copy in copies.items():
        _mark(coco, copy, short_side)

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
        write_whole(target / "annotations" / path.name, lambda file, text=text: file.write(text))
    before, after = (sum(path.stat().st_size for path in paths) for paths in ([f.path for f in files.values()], files))
    return (
        f"{target}: {len(files)} images ({len(files) - len(missing)} were there already), {after / 2**20:.0f} MiB "
        f"instead of {before / 2**20:.0f}; train with data.root={target}"
    )


def shrink_image(short_side: int, file_and_copy: tuple[ImageFile, Path]) -> None:
    """Write the shrunken copy of one image, whole or not at all.

    Raises DatasetError, naming the image, if it cannot be decoded or is not of the recorded size."""
    file, copy = file_and_copy
    pixels = read_file(file)
    copy.parent.mkdir(parents=True, exist_ok=True)
    size = shrunk_size(file.size, short_side)
    if size == file.size:
        write_whole(copy, lambda target: target.write(file.path.read_bytes()), sync=False)
    else:
        image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        write_whole(copy, lambda target: image.save(target, "JPEG", quality=JPEG_QUALITY), sync=False)


def _mark(coco: CocoFile, copy: Path, short_side: int) -> None:
    """Make the folder of the copies and mark it, unless an earlier start did.

    Raises DatasetError if the images are copies themselves, or the folder holds something else."""
    if coco.short_side is not None:
        raise DatasetError(f"{coco.images_dir}: copies with a short side of {coco.short_side}; shrink the originals")
    copy.mkdir(parents=True, exist_ok=True)
    found = read_short_side(copy)
    if found is None and any(copy.iterdir()):
        raise DatasetError(f"{copy}: not empty, and no {SHRUNK} in it; give a new folder by --to")
    if found not in (None, short_side):
        raise DatasetError(f"{copy}: copies with a short side of {found}, asked was {short_side}; give another by --to")
    write_text(copy / SHRUNK, json.dumps({"short_side": short_side}) + "\n")
