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

from data import DatasetError
from detection.annotations import DataConfig, Survey, count, describe, pair_defects, shown_path, survey_coco
from detection.prepare.images import with_bar
from detection.prepare.layouts import HALVES, find_layout, image_folder
from engine.config import Config, load_config
from engine.experiment import table
from engine.storage.files import write_text

YAML = (".yaml", ".yml")


class DataSection(Config, extra="ignore"):
    """What the check reads of a config; the rest is for those who train."""

    data: DataConfig


def main(arguments: argparse.Namespace) -> None:
    """Check as the command line after `check` says: print the defects and the counts of each annotation file.

    Raises DatasetError, at the end, if there are defects."""
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
        layout = find_layout(source)
        return [survey_coco(*layout.paths(half)) for half in HALVES]
    if source.suffix.lower() in YAML:
        config = load_config(source, arguments.overrides, DataSection).data
        return [survey_coco(*config.paths(half)) for half in HALVES]
    images_dir = arguments.images or image_folder(source)
    survey = survey_coco(source, images_dir)
    for index, defect in enumerate(survey.defects):
        if defect.what.endswith(f"{images_dir}: no such folder"):
            survey.defects[index] = defect._replace(what=f"{defect.what}; say where it is by --images")
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
