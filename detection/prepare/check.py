"""Check a whole data set: read every annotation, decode every image, list all that is wrong at once.

    python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd
    python -m detection.data check annotations/instances_val2017.json --images val2017 --json defects.json

Annotations are read by the rules of detection/annotations.py, images by those of detection/dataset.py. Training itself
looks whether the images are there; `data.check_images=true` makes it decode them all before it starts.
"""

import argparse
import json
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
from PIL import Image

from data import DatasetError
from detection.annotations import (
    CocoFile,
    DataConfig,
    Defect,
    ImageFile,
    Survey,
    dataset_error,
    image_defect,
    pair_defects,
    shown_path,
    survey_coco,
)
from detection.dataset import decode_image
from engine import distributed
from engine.config import Config, load_config
from engine.experiment import table
from engine.logbook import progress_bar
from engine.storage.files import write_text

ROUND = 512  # images that a pool of processes checks; whichever kills a process is among so many


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
        return image_defect(file, str(error))
    except Exception as error:
        return image_defect(file, f"damaged: {error}")
    return None


def _find_defect_alone(file: ImageFile) -> Defect | None:
    try:
        with process_pool(1) as pool:
            return pool.submit(find_defect, file).result()
    except BrokenProcessPool:
        return image_defect(file, "the process that decoded it died")


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


def main(words: Sequence[str]) -> None:
    """Check as the command line after `check` says: print the defects and the counts of each annotation file.

    Raises DatasetError, at the end, if there are defects."""
    arguments = parse_arguments(words)
    surveys = [survey_coco(*paths) for paths in find_annotations(arguments)]
    if len(surveys) == 2 and all(survey.coco for survey in surveys):
        for defect in pair_defects(*(survey.coco for survey in surveys)):
            next(s for s in surveys if s.annotations_path == defect.file).defects.append(defect)
    for survey in surveys:
        images = with_bar(survey.files, arguments.workers, survey.annotations_path.name)
        survey.defects.extend(defect for defect in images if defect)

    defects = [defect for survey in surveys for defect in survey.defects]
    if defects:
        print(table([{"file": shown_path(d.file), "record": d.record, "defect": d.what} for d in defects]))
    for survey in surveys:
        print(f"{shown_path(survey.annotations_path)}: {describe(survey)}")
    if arguments.json:
        write_text(arguments.json, json.dumps(report(surveys), indent=2) + "\n")
    if defects:
        numbers = {shown_path(survey.annotations_path): len(survey.defects) for survey in surveys if survey.defects}
        raise DatasetError(", ".join(f"{n} defect{'s' * (n > 1)} in {path}" for path, n in numbers.items()))


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line after `check`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data check",
        description="Read every annotation and decode every image of a data set; list all that is wrong with it.",
        epilog="example: python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd; there is another "
        "command, python -m detection.data shrink --help",
    )
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
    arguments = parser.parse_intermixed_args(words)
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
