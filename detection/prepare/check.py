"""Check a whole data set: read every annotation, decode every image, list all that is wrong at once.

    python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd
    python -m detection.data check /datasets/bccd
    python -m detection.data check annotations/instances_val2017.json --images val2017 --json defects.json

Annotations are read by the rules of detection/annotations.py, images by those of detection/dataset.py. Training itself
looks whether the images are there; `data.check_images=true` makes it decode them all before it starts.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from data import DatasetError
from detection.annotations import (
    DataConfig,
    Defect,
    Survey,
    count,
    describe,
    pair_defects,
    shown_path,
    summarised,
    survey_coco,
)
from detection.ceiling import ceiling_warning
from detection.leaks import named_twice
from detection.prepare.images import with_bar
from detection.prepare.layouts import HALVES, Layout, find_data, image_folder, not_split
from detection.prepare.processes import usual_count
from engine.config import Config, load_config
from engine.experiment import table
from engine.storage.files import write_text
from engine.storage.repeats import Repeats, repeated_bytes, shared_between

YAML = (".yaml", ".yml")


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
        for found in filter(None, images):
            (survey.warnings if found.is_warning else survey.defects).append(found)

    for survey in surveys if len(surveys) == 1 else surveys[1:]:  # nothing is scored on train
        if not survey.defects and (what := ceiling_warning(survey.coco)):
            survey.warnings.append(Defect(survey.annotations_path, "", what, is_warning=True))

    found = find_repeats(surveys)
    defects = [defect for survey in surveys for defect in survey.defects]
    if len(defects) > 1:
        print(table([{"file": shown_path(d.file), "record": d.record, "defect": d.what} for d in defects]))
    for survey in surveys:
        if survey.coco:
            aside = " (records with defects aside)" if survey.defects else ""
            print(f"{shown_path(survey.annotations_path)}: {describe(survey.coco)}{aside}")
        for repeats in found[survey.annotations_path]:
            print(f"warning: {shown_path(survey.annotations_path)}: {repeats}")
    for warning in summarised(warning for survey in surveys for warning in survey.warnings):
        print(f"warning: {warning}")
    if arguments.json:
        write_text(arguments.json, json.dumps(report(surveys, found), indent=2) + "\n")
    if len(defects) == 1:
        raise DatasetError(str(defects[0]))
    if defects:
        numbers = {shown_path(survey.annotations_path): len(survey.defects) for survey in surveys if survey.defects}
        raise DatasetError(", ".join(f"{n} defect{'s' * (n > 1)} in {path}" for path, n in numbers.items()))
    print(f"{sum(len(survey.files) for survey in surveys):,} images decoded, no defects")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line after `check`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data check",
        description="Read every annotation and decode every image of a data set; list all that is wrong with it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
        epilog="example: python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd",
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
        "--workers", type=int, default=usual_count(), metavar="N", help="processes (default: %(default)s)"
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

    Raises ConfigError for a bad config, DatasetError if no data set is recognised in a folder."""
    source = arguments.source
    if source.is_dir():
        found = find_data(source)
        if isinstance(found, Layout):
            return [survey_coco(*found.paths(half)) for half in HALVES]
        survey = survey_coco(*found)
        survey.warnings.append(Defect(found.annotations_path, "", not_split(found), is_warning=True))
        return [survey]
    if source.suffix.lower() in YAML:
        config = load_config(source, arguments.overrides, DataSection).data
        return [survey_coco(*config.paths(half)) for half in HALVES]
    images_dir = arguments.images or image_folder(source)
    survey = survey_coco(source, images_dir)
    for index, defect in enumerate(survey.defects):
        if defect.what.endswith(f"{images_dir}: no such folder"):
            survey.defects[index] = defect._replace(what=f"{defect.what}; say where it is by --images")
    return [survey]


def find_repeats(surveys: Sequence[Survey]) -> dict[Path, list[Repeats]]:
    """Images that are there twice, by annotation file: in one half, and under `val` those that are also in `train`."""
    paths = [[file.path for file in survey.files] for survey in surveys]
    found = {
        survey.annotations_path: [survey.coco and named_twice(survey.coco), repeated_bytes(files)]
        for survey, files in zip(surveys, paths, strict=True)
    }
    if len(surveys) == 2:
        found[surveys[1].annotations_path].append(shared_between(*paths))
    return {path: [repeats for repeats in each if repeats] for path, each in found.items()}


def report(surveys: Sequence[Survey], found: dict[Path, list[Repeats]]) -> list[dict]:
    """The same for other programs, an entry for each annotation file."""
    return [
        {
            "annotations": str(survey.annotations_path),
            "images": str(survey.images_dir),
            "counts": survey.coco and count(survey.coco),
            "defects": [{"file": str(d.file), "record": d.record, "defect": d.what} for d in survey.defects],
            "warnings": [{"file": str(w.file), "record": w.record, "warning": w.what} for w in survey.warnings],
            "repeats": [repeats._asdict() for repeats in found[survey.annotations_path]],
        }
        for survey in surveys
    ]
