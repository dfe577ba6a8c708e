"""Score a detector on corrupted validation images, and record the scores in its experiment.

Each evaluation (a corruption at a severity) is recorded when it is finished, so a repeated command continues. Several
processes share the images, as in every evaluation.
"""

import hashlib
import json
from pathlib import Path

import torch

from data import build_loader, eval_batches
from detection.coco.annotations import CocoFile
from detection.coco.dataset import collate
from detection.coco.evaluation import METRICS, as_dicts, evaluate_coco, image_statistics, summarise_evaluation
from detection.corruptions.dataset import CorruptedImages
from detection.network.ssd import SSD
from detection.task import DetectionTask
from engine import distributed
from engine.inputs import contents_sha256
from engine.logbook import logger, progress_bar
from records.robustness import (
    CLEAN,
    CORRUPTIONS_FILE,
    FOLDER,
    Robustness,
    read_robustness,
    statistics_name,
    write_robustness,
)
from stats.image_statistics import Matches, compact


def begin_record(experiment: Path, new: Robustness) -> Robustness:
    """Return the record to complete: the experiment's, with the corruptions and severities of `new`, or `new`.

    Scores whose per-image statistics are missing are left out. Raises ValueError if the experiment's record was made in
    a different way."""
    old = read_robustness(experiment)
    if old is None:
        return new
    if differences := old.differences(new, also=("checkpoint", "step", "precision")):
        raise ValueError(
            f"{experiment / CORRUPTIONS_FILE}: {differences[0]}; repeat the command that made it, or move it and the "
            f"folder {FOLDER} away to score again"
        )
    scores = {
        name: {
            level: each
            for level, each in by_severity.items()
            if (experiment / FOLDER / statistics_name(name, int(level))).is_file()
        }
        for name, by_severity in old.scores.items()
    }
    clean = old.clean if (experiment / FOLDER / CLEAN).is_file() else None
    return new.model_copy(update={"clean": clean, "scores": scores}).with_means()


def score_corruptions(
    task: DetectionTask, model: SSD, device: torch.device, experiment: Path, new: Robustness, cache: Path | None = None
) -> Robustness:
    """Score a detector on the original images and under each corruption at each severity, and write the records.

    new: the record without scores. cache: folder for the corrupted images; None: nowhere.
    Returns the complete record; on ranks other than 0, the record as it was. Raises ValueError, see begin_record."""
    record = distributed.broadcast(begin_record(experiment, new) if distributed.is_main() else None)
    wanted: list[tuple[str | None, int]] = [] if record.clean else [(None, 0)]
    wanted += record.missing
    finished = len(record.evaluations) + 1 - len(wanted)
    if finished:
        logger.info("%d of %d evaluations are finished already", finished, finished + len(wanted))
    folder = cache and cache / cache_key(task.val, new.versions)
    dataset = CorruptedImages(task.val, task.model.input_size, task.config.data.cache_mib, folder)
    for name, severity in progress_bar(wanted, desc="corruptions", unit="evaluation", leave=False):
        found = evaluate_corrupted(task, model, device, dataset, name and (name, severity))
        if found is None:
            continue
        scores, matches = found
        (experiment / FOLDER).mkdir(exist_ok=True)
        compact(matches).save(experiment / FOLDER, statistics_name(name, severity) if name else CLEAN)
        record = record.with_scores(scores, name, severity)
        write_robustness(experiment, record)
    if distributed.is_main():
        write_robustness(experiment, record)  # in case nothing was scored, but other corruptions were chosen
    return record


def evaluate_corrupted(
    task: DetectionTask,
    model: SSD,
    device: torch.device,
    dataset: CorruptedImages,
    corruption: tuple[str, int] | None,
) -> tuple[dict[str, float | None], Matches] | None:
    """Return the COCO scores and the matches on images with a corruption; None on ranks other than 0.

    corruption: name and severity; None: the original images."""
    dataset.corruption = corruption
    batches = eval_batches(len(dataset), task.config.train.batch_size, distributed.rank(), distributed.world_size())
    # a new loader, because the workers of the last one have a copy of the data set with the last corruption
    task.val_loader = build_loader(dataset, batches, collate, task.workers, device)
    results = task.detect_all(model, device, [task.config.eval])
    task.val_loader = None
    if results is None:
        return None
    evaluation = evaluate_coco(task.truth, as_dicts(results[0]))
    scores = summarise_evaluation(evaluation)
    return {name: scores[name] for name in METRICS}, image_statistics(evaluation)


def cache_key(val: CocoFile, versions: dict[str, str]) -> str:
    """Return the name of the folder for corrupted images. It depends on what changes them, not on where they are.

    Image ids are part of it, because the random numbers depend on them, and sizes, because they decide the orientation.
    Reads every image file once."""
    records = [[image.id, image.width, image.height] for image in val.images]
    contents = contents_sha256(val.images_dir, [image.file_name for image in val.images])
    facts = [records, contents, val.short_side, versions]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def table_rows(record: Robustness) -> list[dict[str, str | float | None]]:
    """Return the rows of the table that is printed: a row per corruption, with its score at each severity."""
    rows = []
    for name in record.corruptions:
        scores = {f"severity {each}": record.scores[name][str(each)][record.metric] for each in record.severities}
        rows.append({"corruption": name, record.metric: record.mean_of(name), **scores})
    return rows


def summary(record: Robustness) -> str:
    """Return clean score, mPC and rPC as a line. A score is undefined only if the validation set has no objects."""
    shown = [f"{name} {'undefined' if value is None else f'{value:.4f}'}" for name, value in (
        (f"clean {record.metric}", record.clean[record.metric]), ("mPC", record.mPC), ("rPC", record.rPC))]  # fmt: skip
    severities = ",".join(map(str, record.severities))
    return f"{', '.join(shown)} ({len(record.corruptions)} corruptions, severities {severities})"
