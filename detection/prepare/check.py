"""Check a whole data set: read every annotation, decode every image, list all that is wrong at once.

    python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd
    python -m detection.data check /datasets/bccd
    python -m detection.data check annotations/instances_val2017.json --images val2017 --json defects.json

Annotations are read by the rules of detection/annotations.py, images by those of detection/dataset.py. Training itself
looks whether the images are there; `data.check_images=true` makes it decode them all before it starts.
"""

import argparse
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path

from PIL import Image

from data import DatasetError
from detection.annotations import (
    CocoFile,
    DataConfig,
    Defect,
    ImageFile,
    Survey,
    count,
    dataset_error,
    describe,
    image_defect,
    pair_defects,
    shown_path,
    survey_coco,
)
from detection.dataset import decode_image
from detection.prepare.layouts import HALVES, find_layout, image_folder
from detection.prepare.processes import process_pool
from engine import distributed
from engine.compute.machine import usable_cores
from engine.config import Config, load_config
from engine.experiment import table
from engine.logbook import progress_bar
from engine.storage.files import write_text

YAML = (".yaml", ".yml")
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


# ---- the command --------------------------------------------------------------------------------------


class DataSection(Config, extra="ignore"):
    """What the check reads of a config; the rest is for those who train."""

    data: DataConfig


def main(words: Sequence[str]) -> None:
    """Check as the command line after `check` says: print the defects and the counts of each annotation file.

    Raises DatasetError, at the end, if there are defects."""
    arguments = parse_arguments(words)
    surveys = read_surveys(arguments)
    if len(surveys) == 2 and all(survey.coco for survey in surveys):
        for defect in pair_defects(*(survey.coco for survey in surveys)):
            next(s for s in surveys if s.annotations_path == defect.file).defects.append(defect)
    for survey in surveys:
        images = with_bar(survey.files, arguments.workers, survey.annotations_path.name)
        survey.defects.extend(defect for defect in images if defect)

    defects = [defect for survey in surveys for defect in survey.defects]
    if len(defects) > 1:
        print(table([{"file": shown_path(d.file), "record": d.record, "defect": d.what} for d in defects]))
    for survey in surveys:
        if survey.coco:
            aside = " (records with defects aside)" if survey.defects else ""
            print(f"{shown_path(survey.annotations_path)}: {describe(survey.coco)}{aside}")
    if arguments.json:
        write_text(arguments.json, json.dumps(report(surveys), indent=2) + "\n")
    if len(defects) == 1:
        raise dataset_error(defects)
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
        "source", type=Path, metavar="CONFIG|FOLDER|ANNOTATIONS",
        help="YAML file or folder of a data set, of which both halves are checked, or a COCO instances JSON",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="data.field=value", help="replaces a value of the config")
    parser.add_argument(
        "--images", type=Path, metavar="DIRECTORY",
        help="image folder of ANNOTATIONS (default: X or images/X beside annotations/instances_X.json's folder)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and defects there, too")
    parser.add_argument(
        "--workers", type=int, default=max(1, int(usable_cores())), metavar="N", help="processes (default: %(default)s)"
    )
    arguments = parser.parse_intermixed_args(words)
    if not 1 <= arguments.workers <= 256:
        parser.error(f"--workers {arguments.workers}: expected 1 to 256")
    if arguments.json and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        parser.error(f"--json {arguments.json}: expected a file in a directory that exists")
    if foreign := [override for override in arguments.overrides if not override.startswith("data.")]:
        parser.error(f"{foreign[0]}: expected data.field=value; the check reads nothing else of a config")
    source = arguments.source
    if not source.exists():
        parser.error(f"{source}: no such file or folder")
    kind = "folder" if source.is_dir() else source.suffix.lower()
    if kind not in ("folder", ".json", *YAML):
        parser.error(f"{source}: expected a config (.yaml), annotations (.json) or the folder of a data set")
    if kind not in YAML and arguments.overrides:
        parser.error(f"{arguments.overrides[0]}: only a CONFIG has values to replace, got {source}")
    if kind != ".json" and arguments.images:
        parser.error(f"--images is for an ANNOTATIONS file; {source} tells the folders itself")
    return arguments


def read_surveys(arguments: argparse.Namespace) -> list[Survey]:
    """What the annotations say that are to be checked: those of train and val, or the one file.

    Raises ConfigError for a bad config, DatasetError if no data set is recognised in a folder, or the image folder of
    an annotation file is nowhere to be found."""
    source = arguments.source
    if source.is_dir():
        layout = find_layout(source)
        return [survey_coco(*layout.paths(half)) for half in HALVES]
    if source.suffix.lower() in YAML:
        config = load_config(source, arguments.overrides, DataSection).data
        return [survey_coco(*config.paths(half)) for half in HALVES]
    images_dir = arguments.images or image_folder(source)
    survey = survey_coco(source, images_dir)
    if survey.coco and survey.coco.images and not images_dir.is_dir():
        raise DatasetError(f"{source}: no image folder at {images_dir}; say where it is by --images")
    return [survey]


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
