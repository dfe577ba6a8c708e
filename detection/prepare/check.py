"""Check a whole data set: read every annotation, decode every image, list all that is wrong at once.

    python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd
    python -m detection.data check /datasets/bccd
    python -m detection.data check annotations/instances_val2017.json --images val2017 --json defects.json

Annotations are read by the rules of detection/coco. Training itself
looks whether the images are there; `data.check_images=true` makes it decode them all before it starts.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from data import DatasetError
from detection.coco.annotations import (
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
from detection.coco.ceiling import ceiling_warning
from detection.coco.leaks import named_twice
from detection.prepare.images import with_bar
from detection.prepare.layouts import HALVES, Layout, find_data, image_folder, not_split
from engine.config import Config, load_config
from engine.files import write_text
from engine.inputs import Repeats, repeated_bytes, shared_between
from records.experiment import table

YAML = (".yaml", ".yml")


class DataSection(Config, extra="ignore"):
    """What the check reads of a config; the rest is for those who train."""

    data: DataConfig


def main(arguments: argparse.Namespace) -> None:
    """Check as the command line after `check` says: print the defects and the counts of each annotation file.

    Raises DatasetError, at the end, if there are defects."""
    surveys = read_surveys(arguments)
    if len(surveys) == 2 and all(survey.coco for survey in surveys):
        train, val = surveys
        for defect in pair_defects(train.coco, val.coco):
            if defect.file == val.annotations_path:
                val.defects.append(defect)
            elif train.is_whole:  # else it may follow from the records that were left out for their defects
                train.defects.append(defect)
    for survey in surveys:
        images = with_bar(survey.files, arguments.workers, survey.annotations_path.name)
        for found in filter(None, images):
            (survey.warnings if found.is_warning else survey.defects).append(found)

    for survey in surveys if len(surveys) == 1 else surveys[1:]:  # nothing is scored on train
        if survey.is_whole and (what := ceiling_warning(survey.coco)):
            survey.warnings.append(Defect(survey.annotations_path, "", what, is_warning=True))

    found = find_repeats(surveys)
    defects = [defect for survey in surveys for defect in survey.defects]
    if len(defects) > 1:
        print(table([{"file": shown_path(d.file), "record": d.record, "defect": d.what} for d in defects]))
    for survey in surveys:
        if survey.coco:
            aside = "" if survey.is_whole else " (records with defects aside)"
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
