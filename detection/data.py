"""Detection data image by image: decoding, samples, batches; and the check of a whole data set.

    python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd
    python -m detection.data check annotations/instances_val2017.json --images val2017 --json defects.json
    python -m detection.data shrink /datasets/coco --short-side 400    (see detection/shrink.py)

The check reads every annotation by the rules of detection/annotations.py and decodes every image, and lists all
that is wrong with either at once. Training itself looks whether the images are there; `data.check_images=true` makes
it decode them all before it starts.

- An image is turned as its EXIF orientation says, unless only the unturned one has the width and height that the
  annotation file gives. Another size is a defect, found before any pixel is decoded.
- Grey, CMYK, palette, transparent and 16-bit images become 8-bit RGB; of an animation the first picture counts.
- An image of more than some 179 million pixels (`PIL.Image.MAX_IMAGE_PIXELS`, twice) is refused by its header.

`CocoDetection` plans what is to be seen of an image, decodes that and resamples it; `collate` makes the batch. Of a
JPEG that is shown at half its size or less, no more pixels are decoded than that takes.
"""

import argparse
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from data import Key
from detection.annotations import (
    CocoFile,
    DataConfig,
    DatasetError,
    Defect,
    ImageFile,
    Survey,
    dataset_error,
    pair_defects,
    shown_path,
    survey_coco,
)
from detection.transforms import Transform, View
from engine import distributed
from engine.command import run_command
from engine.config import Config, load_config
from engine.files import write_text
from engine.logbook import logger, progress_bar

ROUND = 512  # images that a pool of processes checks; whichever kills a process is among so many

# ---- images and batches -------------------------------------------------------------------------------


def read_image(coco: CocoFile, index: int) -> np.ndarray:
    """Decode coco.images[index] to (height, width, 3) uint8 RGB, turned the way its boxes see it.

    A shrunken copy is enlarged to the recorded size. Raises DatasetError if it cannot be decoded or has another."""
    record = coco.images[index]
    pixels = read_file(coco.file(index))
    if pixels.shape[:2] == (record.height, record.width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((record.width, record.height)))


def read_file(file: ImageFile, part: tuple[int, int, int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """`decode_image`, with errors that say where."""
    try:
        return decode_image(file, part, reduction)
    except DatasetError as error:
        raise DatasetError(str(_defect(file, str(error)))) from None


def decode_image(file: ImageFile, part: tuple[int, int, int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB, turned so that it has file.size, or upright without that.

    part: left, top, right, bottom of what is wanted, in pixels; all of it if None.
    reduction: 1, 2, 4 or 8, which divides these: a JPEG that needs no turning may be decoded to so many times
    fewer pixels on each side.

    By Pillow: torchvision's decoder can take the process down with a broken PNG.
    Raises DatasetError, saying why but not where, if it cannot be decoded or has another size."""
    try:
        with Image.open(file.path) as image:
            if image.format == "EPS":
                raise DatasetError("an EPS file, which is a program: Pillow would run it by Ghostscript")
            # Before anything else: to ask a PNG for its orientation is to decode it.
            if file.size and file.size not in (image.size, image.size[::-1]):
                raise _another_size(image, file)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            upright_size = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
            if file.size and file.size not in (image.size, upright_size):
                raise _another_size(image, file)
            if orientation != 1 and (file.size or upright_size) == upright_size:
                image = ImageOps.exif_transpose(image)
            elif reduction > 1 and image.format == "JPEG":
                image.draft(None, (image.width // reduction, image.height // reduction))
                part = tuple(edge // reduction for edge in part)
            if part is not None:
                image = image.crop(part)
            if image.mode.startswith("I"):  # 16 bits, which convert() would saturate
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except DatasetError:
        raise
    except Exception as error:  # Pillow's decoders raise all sorts on broken files
        raise DatasetError(f"cannot be decoded: {error or type(error).__name__}") from None


def _another_size(image: Image.Image, file: ImageFile) -> DatasetError:
    (width, height), recorded = image.size, f"{file.size[0]} x {file.size[1]}"
    shrunk = " once shrunk" if file.is_shrunk else ""
    return DatasetError(f"{width} x {height} pixels, the annotation file says {recorded}{shrunk}")


class CocoDetection(Dataset):
    """Images and their objects, by (epoch, index): the same pair always gives the same sample."""

    def __init__(self, coco: CocoFile, transform: Transform, seed: int = 0, cache_mib: float = 0) -> None:
        """transform: see detection/transforms.py. seed: of the augmentation, 0 or more.

        cache_mib: decode now and keep the first images, as many as fit; forked loader processes share them. Kept
        whole, they differ by a level or two from what a JPEG shown at half its size is decoded to."""
        self.coco, self.transform, self.seed = coco, transform, seed
        self.cached: list[np.ndarray] = []
        if cache_mib:
            self._fill_cache(cache_mib)

    def _fill_cache(self, cache_mib: float) -> None:
        files = [self.coco.file(index) for index in range(len(self))]
        mib = np.cumsum([3 * math.prod(file.size) / 2**20 for file in files])
        count = int(np.searchsorted(mib, cache_mib, side="right"))
        bar = progress_bar(files[:count], desc="decoding images", unit="image", leave=False)
        self.cached = [read_file(file) for file in bar]
        if count < len(files):
            logger.info(
                "%d of %d images fit into a cache of %g MiB; all need %.0f", count, len(files), cache_mib, mib[-1]
            )

    def __len__(self) -> int:
        return len(self.coco.images)

    def __getitem__(self, key: Key) -> dict[str, Tensor | int]:
        """One sample, with crowds left out:
        image (3, S, S) uint8, boxes_xyxy (n, 4) float32 fractions, labels (n,) int64, image_id int,
        and, if colours are to be distorted, colours (8,) float32 for distort_colours."""
        return self._load(key[1], self._plan(key))

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Tensor | int]]:
        """The samples of a batch, as loaders ask for them.

        All are planned before any is loaded: after a JPEG, a plan would take twice as long, its code and tables gone
        from the processor's cache."""
        plans = [self._plan(key) for key in keys]
        return [self._load(index, plan) for (_, index), plan in zip(keys, plans, strict=True)]

    def _plan(self, key: Key) -> tuple[View, np.ndarray]:
        """What is to be seen, and the labels of that: drawn from (seed, epoch, index) alone, so that neither the
        process that loads a sample nor what it loaded before makes a difference."""
        epoch, index = key
        record, size = self.coco.images[index], self.coco.file(index).size
        boxes_xyxy, labels, is_crowd = self.coco.objects(index)
        boxes_xyxy, labels = boxes_xyxy[~is_crowd], labels[~is_crowd]
        if size != (record.width, record.height):  # a shrunken copy
            boxes_xyxy = boxes_xyxy * np.tile(np.divide(size, (record.width, record.height)), 2)
        view = self.transform(size, boxes_xyxy, np.random.default_rng((self.seed, epoch, index)))
        return view, labels[view.objects]

    def _load(self, index: int, plan: tuple[View, np.ndarray]) -> dict[str, Tensor | int]:
        view, labels = plan
        if index < len(self.cached):
            left, top, right, bottom = view.part
            pixels = self.cached[index][top:bottom, left:right]
        else:
            pixels = read_file(self.coco.file(index), view.part, view.reduction)
        sample = {
            "image": view.render(pixels),
            "boxes_xyxy": torch.from_numpy(view.boxes_xyxy).clamp(0, 1),  # rounding
            "labels": torch.from_numpy(labels),
            "image_id": self.coco.images[index].id,
        }
        return sample if view.colours is None else sample | {"colours": torch.from_numpy(view.colours)}


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Stack samples of CocoDetection; those with fewer objects than others are filled up with zeros.

    Returns images (B, 3, S, S) uint8, boxes_xyxy (B, M, 4) float32 fractions, labels (B, M) int64, 0 where there
    is no object, and image_ids (B,) int64; M is the largest number of objects, at least 1. If the samples have
    colours, also these, (B, 8) float32: distort_colours(images, colours) makes the images to train on."""
    max_objects = max(1, *(len(sample["labels"]) for sample in samples))
    boxes_xyxy = torch.zeros(len(samples), max_objects, 4)
    labels = torch.zeros(len(samples), max_objects, dtype=torch.int64)
    for row, sample in enumerate(samples):
        boxes_xyxy[row, : len(sample["labels"])] = sample["boxes_xyxy"]
        labels[row, : len(sample["labels"])] = sample["labels"]
    batch = {
        "images": torch.stack([sample["image"] for sample in samples]),
        "boxes_xyxy": boxes_xyxy,
        "labels": labels,
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
    }
    if "colours" in samples[0]:
        batch["colours"] = torch.stack([sample["colours"] for sample in samples])
    return batch


# ---- checking every image -----------------------------------------------------------------------------


def check_images(cocos: Sequence[CocoFile], workers: int) -> None:
    """Decode every image of checked annotation files before training: each rank its share, in `workers` processes.

    Raises DatasetError, on all ranks, naming the first ten broken ones."""
    files = [coco.file(index) for coco in cocos for index in range(len(coco.images))]
    share = files[distributed.rank() :: distributed.world_size()]
    found = [defect for defect in with_bar(share, workers, "checking images") if defect]
    parts = distributed.gather(found)
    defects = distributed.broadcast(parts and sorted(chain.from_iterable(parts)))
    if defects:
        raise dataset_error(defects)


def with_bar(files: Sequence[ImageFile], workers: int, title: str) -> Iterator[Defect | None]:
    """`find_defects` under a progress bar."""
    return progress_bar(find_defects(files, workers), total=len(files), desc=title, unit="image", leave=False)


def find_defects(files: Sequence[ImageFile], workers: int) -> Iterator[Defect | None]:
    """Decode every image in `workers` processes; yields what is wrong with each, None where nothing is, in order.

    A decoder that takes its process down is a defect of that image: those without an answer by then are tried
    again, each in a process of its own."""
    for start in range(0, len(files), ROUND):
        left = deque(files[start : start + ROUND])
        try:
            with process_pool(workers) as pool:
                for defect in pool.map(find_defect, left):
                    left.popleft()
                    yield defect
        except BrokenProcessPool:
            yield from map(_find_defect_alone, left)


def find_defect(file: ImageFile) -> Defect | None:
    """Decode an image and, of a PNG, compare the checksums, which Pillow does not do on the way."""
    try:
        decode_image(file)
        with Image.open(file.path) as image:
            if image.format == "PNG":
                image.verify()
    except DatasetError as error:
        return _defect(file, str(error))
    except Exception as error:
        return _defect(file, f"damaged: {error}")
    return None


def _find_defect_alone(file: ImageFile) -> Defect | None:
    try:
        with process_pool(1) as pool:
            return pool.submit(find_defect, file).result()
    except BrokenProcessPool:
        return _defect(file, "the process that decoded it died")


def _defect(file: ImageFile, what: str) -> Defect:
    return Defect(file.path, f"image id {file.id!r:.50}", what)


def process_pool(count: int) -> ProcessPoolExecutor:
    """Processes for work on images, which leave signals to this one and end with it."""
    # Forked, they start at once; see data.build_loader.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    return ProcessPoolExecutor(count, context, initializer=_start_process, initargs=(os.getpid(),))


def _start_process(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when that ends, however it does: an idle process would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of Pillow, about images that it decodes all the same

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ---- the command --------------------------------------------------------------------------------------


class DataSection(Config, extra="ignore"):
    """What the check reads of a config; the rest is for those who train."""

    data: DataConfig


def main(device: torch.device) -> None:
    """Check as the command line says: print a table of the defects and the counts of each annotation file.

    Raises DatasetError, at the end, if there are defects."""
    if sys.argv[1:2] == ["shrink"]:
        from detection import shrink  # which decodes by this module

        return shrink.main(sys.argv[2:])
    arguments = parse_arguments()
    surveys = [survey_coco(*paths) for paths in find_annotations(arguments)]
    if len(surveys) == 2 and all(survey.coco for survey in surveys):
        for defect in pair_defects(*(survey.coco for survey in surveys)):
            next(s for s in surveys if s.annotations_path == defect.file).defects.append(defect)
    for survey in surveys:
        images = with_bar(survey.files, arguments.workers, survey.annotations_path.name)
        survey.defects.extend(defect for defect in images if defect)

    defects = [defect for survey in surveys for defect in survey.defects]
    if defects:
        print(table(defects))
    for survey in surveys:
        print(f"{shown_path(survey.annotations_path)}: {describe(survey)}")
    if arguments.json:
        write_text(arguments.json, json.dumps(report(surveys), indent=2) + "\n")
    if defects:
        numbers = {shown_path(survey.annotations_path): len(survey.defects) for survey in surveys if survey.defects}
        raise DatasetError(", ".join(f"{n} defect{'s' * (n > 1)} in {path}" for path, n in numbers.items()))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data",
        description="Read every annotation and decode every image of a data set; list all that is wrong with it.",
        epilog="example: python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd; there is another "
        "command, python -m detection.data shrink --help",
    )
    parser.add_argument("command", choices=["check"])
    parser.add_argument(
        "source", type=Path, metavar="CONFIG|ANNOTATIONS",
        help="YAML file, of which both halves of the data set are checked, or a COCO instances JSON",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="data.field=value", help="replaces a value of the config")
    parser.add_argument(
        "--images", type=Path, metavar="DIRECTORY",
        help="image folder of ANNOTATIONS (default: X or images/X beside annotations/instances_X.json's folder)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and defects there, too")
    parser.add_argument(
        "--workers", type=int, default=cpu_count(), metavar="N", help="processes (default: %(default)s)"
    )
    arguments = parser.parse_intermixed_args()
    if not 1 <= arguments.workers <= 256:
        parser.error(f"--workers {arguments.workers}: expected 1 to 256")
    if arguments.json and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        parser.error(f"--json {arguments.json}: expected a file in a directory that exists")
    if foreign := [override for override in arguments.overrides if not override.startswith("data.")]:
        parser.error(f"{foreign[0]}: expected data.field=value; the check reads nothing else of a config")
    if _is_json(arguments.source) and arguments.overrides:
        parser.error(f"{arguments.overrides[0]}: only a CONFIG has values to replace, got {arguments.source}")
    if not _is_json(arguments.source) and arguments.images:
        parser.error(f"--images is for an ANNOTATIONS file; {arguments.source} names the folders itself")
    return arguments


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def cpu_count() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_annotations(arguments: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Annotation file and image folder of what is to be checked: of train and val, or of the one file.

    Raises ConfigError for a bad config, DatasetError if the image folder is nowhere to be found."""
    path = arguments.source
    if not _is_json(path):
        config = load_config(path, arguments.overrides, DataSection).data
        return [config.paths("train"), config.paths("val")]
    if arguments.images:
        return [(path, arguments.images)]
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    folders = image_folders(path)
    for folder in folders:
        if folder.is_dir():
            return [(path, folder)]
    raise DatasetError(f"{path}: no image folder at {folders[0]}; say where it is by --images")


def image_folders(annotations_path: Path) -> tuple[Path, Path]:
    """Where the images of ROOT/annotations/instances_X.json may lie: ROOT/X, as COCO has it, or ROOT/images/X."""
    root, name = annotations_path.absolute().parent.parent, annotations_path.stem.removeprefix("instances_")
    return root / name, root / "images" / name


def table(defects: Sequence[Defect]) -> str:
    """Defects as aligned columns: file, record, what is wrong."""
    rows = [("file", "record", "defect"), *((shown_path(file), record, what) for file, record, what in defects)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{file:<{widths[0]}}  {record:<{widths[1]}}  {what}" for file, record, what in rows)


def count(coco: CocoFile) -> dict[str, int]:
    """What is there, and what training does not take as it is."""
    targets = np.bincount(np.repeat(np.arange(len(coco.images)), np.diff(coco.first_object))[~coco.is_crowd])
    return {
        "images": len(coco.images),
        "objects": len(coco.labels),
        "classes": len(coco.class_names),
        "boxes_cut": coco.num_cut,
        "boxes_left_out": coco.num_left_out,
        "crowds": int(coco.is_crowd.sum()),
        "images_without_objects": len(coco.images) - int(np.count_nonzero(targets)),
    }


def describe(survey: Survey) -> str:
    """The counts of one annotation file in a sentence."""
    if survey.coco is None:
        return "nothing in it can be counted"
    text = (
        "{images} images, {objects} objects, {classes} classes; in training, {boxes_cut} boxes are cut at the edge of "
        "their image, {boxes_left_out} without area and {crowds} crowds left out; {images_without_objects} images have "
        "no object to train on"
    ).format(**count(survey.coco))
    return f"{text} (records with defects aside)" if survey.defects else text


def report(surveys: Sequence[Survey]) -> list[dict]:
    """The same for other programs, an entry for each annotation file."""
    return [
        {
            "annotations": str(survey.annotations_path),
            "images": str(survey.images_dir),
            "counts": survey.coco and count(survey.coco),
            "defects": [{"file": str(d.file), "record": d.record, "defect": d.what} for d in survey.defects],
        }
        for survey in surveys
    ]


if __name__ == "__main__":
    run_command(main)
