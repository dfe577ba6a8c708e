"""Rewrite the images of a data set once, smaller: they take less room, and less time to decode at every epoch.

    python -m detection.data shrink datasets/coco --short-side 400

makes datasets/coco_400: every annotations/instances_X.json of the original, byte for byte, and the images it lists,
as JPEGs whatever their names say. A smaller image is copied as it is. `shrunk.json` among the images says that width
and height in the annotations are the original's, so boxes, detections and scores stay in its pixels, and an image of
a different size than its copy should have is still an error.

Choose a short side above the network's input size: random crops enlarge what they show. Stopped and started again, the
command continues; the annotations are copied last, so nothing can be trained on half a copy. Copies are never
rewritten: after a change of the originals, shrink into a new folder.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from PIL import Image

from data import DatasetError
from detection.coco.annotations import CocoFile, read_coco
from detection.coco.dataset import read_file
from detection.coco.image_files import SHRUNK, ImageFile, read_short_side, shrunk_size
from detection.prepare.images import process_pool
from detection.prepare.layouts import image_folder
from engine.files import file_sha256, write_text, writing
from engine.logbook import progress_bar

JPEG_QUALITY = 92


def main(arguments: argparse.Namespace) -> None:
    """Shrink as the command line says. Raises DatasetError for a data set that cannot be used."""
    print(shrink(arguments.root, arguments.to, arguments.short_side, arguments.workers))


def shrink(root: Path, target: Path, short_side: int, workers: int) -> str:
    """Make or continue the copy of a data set in `target`; return what was done, in a sentence.

    Raises DatasetError if the data set is not sound, an image cannot be decoded, or something else is in `target`."""
    paths = sorted((root / "annotations").glob("instances_*.json"))
    if not paths:
        raise DatasetError(f"{root}: no annotations/instances_*.json in it; is it the folder of a data set?")
    for path in paths:
        if not (images := image_folder(path)).is_dir():
            raise DatasetError(f"{path}: there is no folder {images} with its images; put them there, or link it")
    copies = {}  # folder of each annotation file's copies
    for coco in [read_coco(path, image_folder(path)) for path in paths]:
        there = target / "annotations" / coco.annotations_path.name
        if there.exists() and there.read_bytes() != coco.annotations_path.read_bytes():
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
    missing = {path: file for path, file in files.items() if not path.exists()}
    try:
        with process_pool(workers) as pool:
            done = pool.map(partial(shrink_image, short_side), missing.values(), missing, chunksize=8)
            for _ in progress_bar(done, total=len(missing), desc="shrinking images", unit="image", leave=False):
                pass
    except BrokenProcessPool:
        cure = "`python -m detection.data check` finds out which"
        raise DatasetError(f"{root}: a process died over an image; {cure}") from None

    (target / "annotations").mkdir(exist_ok=True)
    for coco in copies:
        if file_sha256(coco.annotations_path) != coco.sha256:
            raise DatasetError(f"{coco.annotations_path}: was changed while its images were shrunk; start again")
        _replace(partial(shutil.copyfile, coco.annotations_path), target / "annotations" / coco.annotations_path.name)
    before, after = (sum(path.stat().st_size for path in paths) for paths in ([f.path for f in files.values()], files))
    return (
        f"{target}: {len(files)} images ({len(files) - len(missing)} were there already), {after / 2**20:.0f} MiB "
        f"instead of {before / 2**20:.0f}; train with data.root={target}"
    )


def shrink_image(short_side: int, file: ImageFile, copy: Path) -> None:
    """Write the shrunken copy of one image; `copy` appears only when it is complete.

    Raises DatasetError, naming the image, if it cannot be decoded or is not of the recorded size."""
    pixels = read_file(file)
    copy.parent.mkdir(parents=True, exist_ok=True)
    size = shrunk_size(file.size, short_side)
    if size == file.size:
        _replace(partial(shutil.copyfile, file.path), copy)
    else:
        image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        _replace(partial(image.save, format="JPEG", quality=JPEG_QUALITY), copy)


def _replace(write: Callable[[Path], object], path: Path) -> None:
    """As engine.files.write_whole, but without waiting for the disk, which takes too long for each image."""
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        write(temporary)
        os.replace(temporary, path)


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
