"""Check a data set: read every annotation, decode every image, and list all defects at once.

Training also checks all annotations, but it decodes all images in advance only if `data.check_images=true`.
"""

import argparse
import json
from collections.abc import Iterator, Sequence

from data import DatasetError
from detection.coco.annotations import DataConfig, Survey, count, describe, pair_defects, survey_coco
from detection.coco.defects import Defect, printable_path, summarise_warnings
from detection.coco.warnings import ceiling_warning
from detection.prepare.images import find_defects
from detection.prepare.labels import SPLITS
from detection.prepare.layouts import Layout, find_data, find_images_dir, split_advice
from engine.config import Config, load_config
from engine.files import write_text
from engine.inputs import Repeats, find_repeated_bytes, find_repeated_names, find_shared_files
from records.experiment import table


class DataSection(Config, extra="ignore"):
    """The section of a config that `check` reads. All other sections are ignored."""

    data: DataConfig


def main(arguments: argparse.Namespace) -> None:
    """Run the `check` command: print all defects, then the counts of each annotation file and the warnings.

    Raises DatasetError at the end if there are defects."""
    surveys = read_surveys(arguments)
    if len(surveys) == 2 and all(survey.coco for survey in surveys):
        train, val = surveys
        for defect in pair_defects(train.coco, val.coco):
            if defect.file == val.annotations_path:
                val.defects.append(defect)
            elif train.is_complete:  # otherwise the cause may be that invalid records were skipped
                train.defects.append(defect)
    for survey in surveys:
        for defect in find_defects(survey.files, arguments.workers, survey.annotations_path.name):
            (survey.warnings if defect.is_warning else survey.defects).append(defect)
    for survey, what in dataset_warnings(surveys):
        survey.warnings.append(Defect(survey.annotations_path, "", what, is_warning=True))

    defects = [defect for survey in surveys for defect in survey.defects]
    if len(defects) > 1:
        print(table([{"file": printable_path(d.file), "record": d.record, "defect": d.what} for d in defects]))
    for survey in surveys:
        if survey.coco:
            note = "" if survey.is_complete else " (without records that have defects)"
            print(f"{printable_path(survey.annotations_path)}: {describe(survey.coco)}{note}")
    for warning in summarise_warnings(warning for survey in surveys for warning in survey.warnings):
        print(f"warning: {warning}")
    if arguments.json:
        write_text(arguments.json, json.dumps([report(survey) for survey in surveys], indent=2) + "\n")
    if len(defects) == 1:
        raise DatasetError(str(defects[0]))
    if defects:
        raise DatasetError(f"{arguments.source}: {len(defects):,} defects, listed above")
    print(f"{sum(len(survey.files) for survey in surveys):,} images decoded, no defects")


def read_surveys(arguments: argparse.Namespace) -> list[Survey]:
    """Read the annotations to check: train and val, or a single file.

    Raises ConfigError if the config is invalid, and DatasetError if the folder contains no known data set layout."""
    source = arguments.source
    if source.is_dir():
        found = find_data(source)
        if isinstance(found, Layout):
            return [survey_coco(*found.paths(split)) for split in SPLITS]
        survey = survey_coco(*found)
        survey.warnings.append(Defect(found.annotations_path, "", split_advice(found), is_warning=True))
        return [survey]
    if source.suffix.lower() == ".json":
        return [survey_coco(source, arguments.images or find_images_dir(source))]
    config = load_config(source, arguments.overrides, DataSection).data
    return [survey_coco(*config.paths(split)) for split in SPLITS]


def dataset_warnings(surveys: Sequence[Survey]) -> Iterator[tuple[Survey, str | Repeats]]:
    """Yield (survey, warning): reasons why mAP cannot reach 1, and duplicate images within and across the splits."""
    for survey in surveys if len(surveys) == 1 else surveys[1:]:  # no score is computed on train
        if survey.is_complete and (what := ceiling_warning(survey.coco)):
            yield survey, what
    paths = [[file.path for file in survey.files] for survey in surveys]
    for survey, files in zip(surveys, paths, strict=True):
        names = [image.file_name for image in survey.coco.images] if survey.coco else []
        yield from (
            (survey, repeats) for repeats in (find_repeated_names(names), find_repeated_bytes(files)) if repeats
        )
    if len(surveys) == 2 and (repeats := find_shared_files(*paths)):
        yield surveys[1], repeats


def report(survey: Survey) -> dict:
    """Return the entry for one annotation file in the JSON report (option --json)."""
    return {
        "annotations": str(survey.annotations_path),
        "images": str(survey.images_dir),
        "counts": survey.coco and count(survey.coco),
        "defects": [{"file": str(d.file), "record": d.record, "defect": d.what} for d in survey.defects],
        "warnings": [{"file": str(w.file), "record": w.record, "warning": str(w.what)} for w in survey.warnings],
    }
