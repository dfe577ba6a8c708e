"""Score the detections of any detector (results files in COCO's format), so that `ablation.compare` can compare them.

    python -m ablation.compare --annotations instances_val.json yolo=a.json rtdetr=b.json,c.json

Scores and statistics are those of a finished run (detection/record.py), but 500,000 detections take 3 seconds instead
of 45 with pycocotools (benchmarks/evaluation.md): hotcoco matches the detections of a class on the images that have
objects of this class, and all others are false positives.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import hotcoco
import numpy as np
from pycocotools.coco import COCO

from data import DatasetError
from detection.coco.annotations import CocoFile
from detection.coco.errors import error_breakdown
from detection.coco.evaluation import MAX_DETECTIONS, METRICS, GroundTruth, as_dicts, image_statistics, quick_scores
from detection.coco.results import ResultsFile, permutation_warning, read_annotations, read_results_file
from detection.coco.warnings import ceiling_warning
from engine.logbook import progress_bar
from records.results import Cost, Results, Run
from stats.bootstrap import resampled_scores
from stats.image_statistics import Matches

ANY_SIZE = [0, 1e10]  # square pixels; pycocotools' area range "all"


def score_files(
    annotations: Path, files: Mapping[str, Sequence[Path]], with_errors: bool
) -> tuple[dict[str, list[Run]], list[str]]:
    """Score results files against an annotation file.

    files: from the name of a detector to its results files, one per training seed.
    with_errors: whether to count errors by kind, which takes longer than all the rest.

    Returns {name: runs} and warnings. The seed of a run is -1 for the first file, -2 for the second, and so on, because
    the seed of its training is unknown, and equal seeds would mean that runs have something in common.
    Raises DatasetError if a file is invalid."""
    with no_garbage_collection():
        return _score_files(annotations, files, with_errors)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Context manager that pauses the search for cyclic garbage, which doubles the time to create millions of dicts."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _score_files(
    annotations: Path, files: Mapping[str, Sequence[Path]], with_errors: bool
) -> tuple[dict[str, list[Run]], list[str]]:
    coco = read_annotations(annotations)
    ceiling = ceiling_warning(coco)
    warnings = [f"{annotations}: {ceiling}"] if ceiling else []
    read = {name: [read_results_file(path, coco) for path in paths] for name, paths in files.items()}
    warnings += [line for each in read.values() for file in each for line in file.warnings]
    warnings += repeated_files(read)
    truth, runs = GroundTruth(annotations, coco.sha256), {name: [] for name in files}
    every = [(name, file) for name, each in read.items() for file in each]
    for number, (name, file) in enumerate(progress_bar(every, desc="scoring", unit="file", leave=False), start=1):
        run = score_file(name, -number, file, coco, truth, with_errors)
        ap = np.array([scores["AP"] for scores in run.results.per_class.values()], np.float64)
        warnings += filter(None, [permutation_warning(file, coco, ap)])
        runs[name].append(run)
    return runs, warnings


def repeated_files(files: Mapping[str, Sequence[ResultsFile]]) -> list[str]:
    """Return a warning for each file whose content is also the content of a different detector's file.

    Raises DatasetError if two files of one detector have the same content, because they are not two seeds."""
    warnings, known = [], {}
    for name, each in files.items():
        for file in each:
            other, first = known.setdefault(file.sha256, (name, file))
            if first is file:
                continue
            if other == name:
                raise DatasetError(
                    f"{name}={first.path},{file.path}: the files have the same content, so they are not two seeds; "
                    "name each file once"
                )
            warnings.append(f"{first.path} ({other}) and {file.path} ({name}) have the same content")
    return warnings


def score_file(name: str, seed: int, file: ResultsFile, coco: CocoFile, truth: GroundTruth, with_errors: bool) -> Run:
    """Return the detections of one file as a finished run. See score_files."""
    matches, evaluation, unmatched = match(truth, file.detections)
    at_50 = replace(
        matches,
        iou_thresholds=matches.iou_thresholds[:1],
        true_positives=matches.true_positives[:, :1],
        ignored=matches.ignored[:, :1],
    )
    original = np.ones((1, len(matches.image_ids)), int)  # every image once
    ap, ap50 = (resampled_scores(each, original)[1][0].tolist() for each in (matches, at_50))
    results = Results(
        task="detection",
        variant={"detector": name, "": ""},
        seed=seed,
        metric=METRICS[0],
        scores=quick_scores(truth, file.detections),
        per_class={
            class_name: {"AP": _defined(ap[k]), "AP50": _defined(ap50[k])}
            for k, class_name in enumerate(coco.class_names)
        },
        errors=error_breakdown(with_all_detections(evaluation, unmatched, file.detections)) if with_errors else None,
        protocol={
            "annotations": coco.annotations_path.name,
            "annotations_sha256": coco.sha256,
            "images": len(coco.images),
            "classes": coco.class_names,
        },
        inputs={str(coco.annotations_path): coco.sha256, str(file.path): file.sha256},
        cost=Cost(),
        category_ids=coco.category_ids,
    )
    return Run(file.path, results, config={}, curve=[], starts=[], statistics=matches)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


# ---- matching ----------------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """The parts of pycocotools' COCOeval that image_statistics and error_breakdown read, for objects of any size."""

    params: SimpleNamespace  # imgIds, catIds, iouThrs, areaRng
    evalImgs: list[dict]
    cocoGt: COCO
    cocoDt: SimpleNamespace | None = None  # anns: {id: detection}


def match(truth: GroundTruth, detections: np.ndarray) -> tuple[Matches, Evaluation, np.ndarray]:
    """Match detections (N, 7) to objects. Equal to pycocotools, including the order of tied scores.

    Returns the matches, and for with_all_detections: the evaluation of the images and classes with objects, and the
    rows of the other detections that count."""
    annotations = truth.coco.dataset["annotations"]
    image_ids, category_ids = np.array(sorted(truth.coco.imgs)), np.array(sorted(truth.coco.cats))

    def pair_numbers(images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """Return a number for each pair of category and image, in pycocotools' order of pairs."""
        return np.searchsorted(category_ids, categories) * len(image_ids) + np.searchsorted(image_ids, images)

    pairs = pair_numbers(detections[:, 0], detections[:, 6])
    object_pairs = pair_numbers(*np.array([[a["image_id"], a["category_id"]] for a in annotations]).T)
    can_match = np.isin(pairs, object_pairs)
    evaluation = matched_objects(truth, detections, np.flatnonzero(can_match))
    rows = best_of_each_pair(pairs, detections[:, 5], np.flatnonzero(~can_match))
    matches = image_statistics(evaluation)
    is_too_large = detections[rows, 3] * detections[rows, 4] > ANY_SIZE[1]  # pycocotools ignores such detections
    no_match = np.zeros((len(rows), len(matches.iou_thresholds)), bool)
    classes, images = np.divmod(pairs[rows], len(image_ids))
    parts = {
        "detection_images": images.astype(np.int32),
        "detection_classes": classes.astype(np.int16),
        "scores": detections[rows, 5],
        "true_positives": no_match,
        "ignored": no_match | is_too_large[:, None],
    }
    merged = {name: np.concatenate([getattr(matches, name), part]) for name, part in parts.items()}
    order = np.lexsort((merged["detection_images"], merged["detection_classes"]))  # stable: keeps the ranks in a pair
    return replace(matches, **{name: values[order] for name, values in merged.items()}), evaluation, rows


def matched_objects(truth: GroundTruth, detections: np.ndarray, rows: np.ndarray) -> Evaluation:
    """Match some detections with hotcoco. The evaluation has an entry for each class and image with objects.

    rows: the detections on images that have objects of their class. A detection's id is its row + 1."""
    peer = truth.hotcoco
    evaluation = hotcoco.COCOeval(peer, peer.load_res(detections[rows]), "bbox")
    params = evaluation.params
    params.areaRng, params.areaRngLbl = [ANY_SIZE], ["all"]
    evaluation.params = params
    evaluation.evaluate()
    entries = sorted(filter(None, evaluation.evalImgs), key=lambda entry: (entry["category_id"], entry["image_id"]))
    for entry in entries:
        entry["gtIgnore"] = np.array(entry["gtIgnore"])
        entry["dtIgnore"] = np.array(entry["dtIgnore"]).reshape(len(params.iouThrs), -1)
        entry["dtIds"] = (rows[np.array(entry["dtIds"], int) - 1] + 1).tolist()
    ids = {"imgIds": sorted(truth.coco.imgs), "catIds": sorted(truth.coco.cats)}
    return Evaluation(SimpleNamespace(iouThrs=params.iouThrs, areaRng=params.areaRng, **ids), entries, truth.coco)


def best_of_each_pair(pairs: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the rows with the highest scores, at most MAX_DETECTIONS per pair, sorted by pair and then by score.

    pairs: (N,) int, the number of each detection's class and image. rows: the detections to choose from."""
    order = rows[np.lexsort((-scores[rows], pairs[rows]))]  # stable, like pycocotools
    _, first, counts = np.unique(pairs[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    return order[rank < MAX_DETECTIONS]


def with_all_detections(evaluation: Evaluation, unmatched: np.ndarray, detections: np.ndarray) -> Evaluation:
    """Return the evaluation with entries for unmatched detections too, and with the records of all detections.

    unmatched: rows of detections without objects of their class on their image, see best_of_each_pair."""
    any_size = evaluation.params.areaRng[0]
    is_new_pair = np.any(np.diff(detections[unmatched][:, [0, 6]], axis=0) != 0, axis=1)
    entries = [
        {
            "image_id": int(detections[rows[0], 0]),
            "category_id": int(detections[rows[0], 6]),
            "aRng": any_size,
            "gtIds": [],
            "gtIgnore": [],
            "dtIds": (rows + 1).tolist(),
            "dtIgnore": (detections[rows, 3] * detections[rows, 4] > any_size[1])[None],
        }
        for rows in np.split(unmatched, np.flatnonzero(is_new_pair) + 1)
        if len(rows)
    ]
    found = {
        number: record | {"id": number, "iscrowd": 0, "area": record["bbox"][2] * record["bbox"][3]}
        for number, record in enumerate(as_dicts(detections), start=1)
    }
    return evaluation._replace(evalImgs=evaluation.evalImgs + entries, cocoDt=SimpleNamespace(anns=found))
