"""Read and check results files in COCO's format (cocodataset.org/#format-results): the detections of any detector.

A results file is a JSON list with an object for each detection: {"image_id", "category_id", "bbox": [x, y, width,
height] in pixels of the original image, "score" from 0 to 1}. Other fields are ignored. A file with an invalid entry is
refused; a file that is valid but looks wrong gets warnings. Entries are numbered from 0.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask
from scipy.optimize import linear_sum_assignment

from data import DatasetError
from detection.coco.annotations import CocoFile, survey_coco
from detection.coco.defects import MAX_OVERHANG, MIN_SUSPICIOUS, dataset_error, diagnose_boxes
from engine.terminal import counted

FIELDS = ("image_id", "category_id", "bbox", "score")
EXPECTED = 'expected a JSON list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}'
BINARY = (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz")  # suffixes of other formats that tools write detections to
MAX_AP = 0.05  # of classes whose ids may be permuted
MIN_PERMUTED = (
    0.25  # warn if at least this fraction of the objects of a class has boxes of one specific different class
)
MIN_COVERED = 0.5  # warn if a smaller fraction of the images with objects has detections


class ResultsFile(NamedTuple):
    """A checked results file."""

    path: Path
    sha256: str
    detections: np.ndarray  # (N, 7) float64: image_id, x, y, width, height, score, category_id, as in the file
    warnings: list[str]


def read_annotations(path: Path) -> CocoFile:
    """Read and check an annotation file without its images.

    Raises DatasetError if a record is invalid or if there are no objects to score detections against."""
    survey = survey_coco(path, path.parent)
    if not survey.is_complete:  # then the first defect is not a missing image
        raise dataset_error(survey.defects[:1])
    if not survey.coco.class_counts.any():
        raise DatasetError(f"{path}: no objects, so detections cannot be scored; use an annotation file with objects")
    return survey.coco


def read_results_file(path: Path, coco: CocoFile) -> ResultsFile:
    """Read a results file. coco: the annotation file that the detections are for.

    Raises DatasetError naming the first invalid entry, its value, the expected value and the cure."""
    entries, sha256 = _read_list(path)
    detections = _to_array(entries, path, coco)
    return ResultsFile(path, sha256, detections, list(_warnings(path, detections, coco)))


def _read_list(path: Path) -> tuple[list, str]:
    """Return the JSON list in a file and the file's SHA-256."""
    if path.suffix in BINARY:
        raise DatasetError(f"{path}: a {path.suffix} file is not a results file; {EXPECTED}")
    text = path.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: invalid JSON or invalid UTF-8
        raise DatasetError(f"{path}: not JSON: {error}; {EXPECTED}") from None
    if isinstance(content, dict) and "annotations" in content:
        raise DatasetError(f"{path}: is an annotation file (it has 'annotations'), not detections; {EXPECTED}")
    if not isinstance(content, list):
        keys = f" with the keys {', '.join(content)[:100] or '(none)'}" if isinstance(content, dict) else ""
        raise DatasetError(f"{path}: is a JSON {type(content).__name__}{keys}; {EXPECTED}")
    return content, hashlib.sha256(text).hexdigest()


# ---- invalid entries ---------------------------------------------------------------------------------------


def _to_array(entries: list, path: Path, coco: CocoFile) -> np.ndarray:
    """Return the detections as (N, 7) float64 (see ResultsFile). Raises DatasetError for the first invalid entry."""

    def refuse(is_invalid: np.ndarray, describe: Callable[[dict], str]) -> None:
        """Raise DatasetError for the first invalid entry, if any. is_invalid: (N,) bool."""
        if is_invalid.any():
            first, number = int(is_invalid.argmax()), int(is_invalid.sum())
            count = f" (the first of {number:,} such entries)" if number > 1 else ""
            raise DatasetError(f"{path}: entry {first}: {describe(entries[first])}{count}")

    image_ids, category_ids, boxes, scores = (_column(entries, field, refuse) for field in FIELDS)
    image_numbers, category_numbers, score_numbers = map(_to_numbers, (image_ids, category_ids, scores))
    known = np.array([image.id for image in coco.images], np.float64)
    is_unknown = ~np.isin(image_numbers, known)
    if is_unknown.any():
        none_known = bool(is_unknown.all())
        refuse(is_unknown, lambda entry: _unknown_image(entry["image_id"], coco, none_known))
    is_unknown = ~np.isin(category_numbers, np.array(coco.category_ids, np.float64))
    if is_unknown.any():
        used = np.unique(category_numbers[~np.isnan(category_numbers)])
        refuse(is_unknown, lambda entry: _unknown_category(entry["category_id"], used, coco))

    if not ({type(box) for box in boxes} <= {list} and {len(box) for box in boxes} <= {4}):
        is_invalid = np.array([not isinstance(box, list) or len(box) != 4 for box in boxes], bool)
        refuse(is_invalid, lambda entry: f"bbox is {entry['bbox']!r:.80}, expected 4 numbers [x, y, width, height]")
    boxes_xywh = _to_numbers(list(chain.from_iterable(boxes))).reshape(-1, 4)
    refuse(
        ~np.isfinite(boxes_xywh).all(axis=1),
        lambda entry: (
            f"bbox is {entry['bbox']!r:.80}, expected finite numbers [x, y, width, height]; "
            "remove this detection, and find out why the detector computes such numbers"
        ),
    )
    refuse(
        (boxes_xywh[:, 2:] < 0).any(axis=1),
        lambda entry: (
            f"bbox is {entry['bbox']!r:.80}, expected [x, y, width, height] with width and height not "
            "negative; if these are corners [x1, y1, x2, y2], subtract x1 from x2 and y1 from y2"
        ),
    )
    refuse(
        ~np.isfinite(score_numbers),
        lambda entry: f"score is {entry['score']!r:.50}, expected a number from 0 to 1; export the detector's scores",
    )
    refuse(
        (score_numbers < 0) | (score_numbers > 1),
        lambda entry: (
            f"score is {entry['score']!r:.50}, expected 0 to 1; apply the sigmoid or softmax if these are "
            "logits, divide by 100 if these are percentages"
        ),
    )
    return np.column_stack([image_numbers, boxes_xywh, score_numbers, category_numbers])


def _column(entries: list, field: str, refuse: Callable[[np.ndarray, Callable], None]) -> list:
    """Return the values of a field of all entries. Calls `refuse` if entries lack the field."""
    try:
        return [entry[field] for entry in entries]
    except (KeyError, TypeError, IndexError):
        refuse(
            np.array([not isinstance(entry, dict) or field not in entry for entry in entries]),
            lambda entry: _missing(entry, field),
        )
        raise


def _missing(entry: Any, field: str) -> str:
    """Return what is wrong with an entry that lacks a field."""
    if not isinstance(entry, dict):
        return f"is {entry!r:.80}; {EXPECTED}"
    if field == "bbox" and (shapes := [name for name in ("segmentation", "keypoints") if name in entry]):
        return f"has {shapes[0]} but no bbox; only boxes are compared, so export the detector's boxes"
    keys = ", ".join(map(str, entry))[:80]
    if field == "score":
        return f"no 'score' (keys: {keys}), expected a number from 0 to 1; export scores, because AP ranks by them"
    return f"no {field!r} (keys: {keys}); {EXPECTED}"


def _to_numbers(values: list) -> np.ndarray:
    """Return values as float64, with nan for those that are not numbers (such as text or true)."""
    if not {type(value) for value in values} <= {int, float}:
        values = [value if type(value) in (int, float) else math.nan for value in values]
    try:
        return np.array(values, np.float64)
    except OverflowError:  # an integer beyond the range of float64
        return np.array([value if abs(value) < 1e300 else math.inf for value in values], np.float64)


def _unknown_image(value: Any, coco: CocoFile, none_known: bool) -> str:
    """Return what is wrong with an image id, and the cure. none_known: whether no entry has a known image id."""
    ids = {image.id for image in coco.images}
    if isinstance(value, str):
        if (number := _integer(value)) in ids:
            return f"image_id is {value!r}, expected the integer {number}; write ids as integers, without quotes"
        stem = PurePath(value).stem
        for image in coco.images:
            if value == image.file_name or stem in (PurePath(image.file_name).stem, PurePath(image.file_name).name):
                return (
                    f"image_id is {value!r}, expected {image.id}, the id of {image.file_name} in "
                    f"{coco.annotations_path}; replace file names by image ids (some tools, such as ultralytics, "
                    "write the file name if it is not a number)"
                )
    cure = "no entry has a known image id: use the annotation file of the split that was detected"
    if not none_known:
        cure = "use the annotation file that these detections were made for, or remove the detections of other images"
    images = f"one of the {len(ids):,} image ids of {coco.annotations_path} ({min(ids)} to {max(ids)})"
    return f"image_id is {value!r:.80}, expected {images}; {cure}"


def _unknown_category(value: Any, used: np.ndarray, coco: CocoFile) -> str:
    """Return what is wrong with a category id, and the cure. used: sorted ids of all entries, as numbers."""
    ids, number = coco.category_ids, len(coco.category_ids)
    expected = f"one of the {counted(number, 'id', 'ids')} of {coco.annotations_path} ({_ranges(ids)})"
    text = f"category_id is {value!r:.80}, expected {expected}"
    if isinstance(value, str):
        cure = "write ids as integers, without quotes" if _integer(value) in ids else "write ids, not names"
        return f"{text}; {cure}"
    for start in (0, 1):
        indices = range(start, start + number)
        if used.size and ids != list(indices) and used[0] >= start and used[-1] <= indices[-1]:
            return (
                f"{text}; all ids of this file are from {start} to {indices[-1]}, so they seem to be contiguous class "
                f"indices instead of category ids: replace {start} by {ids[0]}, ..., {indices[-1]} by {ids[-1]} (the "
                "ids in ascending order, if the detector's classes have the same order)"
            )
    return f"{text}; use the annotation file with the classes of this detector, or map its classes to these ids"


def _integer(text: str) -> int | None:
    """Return the integer that a text such as '293' or '293.0' stands for; None if there is none."""
    try:
        return int(float(text)) if float(text).is_integer() else None
    except ValueError:
        return None


def _ranges(ids: Sequence[int]) -> str:
    """Return '1 to 3' for ascending ids without gaps, or '1 to 90, with gaps'."""
    gaps = ", with gaps" if ids[-1] - ids[0] >= len(ids) else ""
    return f"{ids[0]} to {ids[-1]}{gaps}"


# ---- warnings ----------------------------------------------------------------------------------------------


def _warnings(path: Path, detections: np.ndarray, coco: CocoFile) -> list[str]:
    """Return warnings about valid detections that look wrong."""
    if not len(detections):
        return [f"{path}: no detections, so every score is 0"]
    lines, number = [], len(detections)
    image_ids = np.array([image.id for image in coco.images], np.int64)
    order = np.argsort(image_ids)
    position = order[np.searchsorted(image_ids[order], detections[:, 0].astype(np.int64))]
    sizes = np.array([(image.width, image.height) for image in coco.images], np.float64)[position]  # (N, 2)
    boxes_xywh, scores = detections[:, 1:5], detections[:, 5]
    is_far_over = (boxes_xywh[:, :2] + boxes_xywh[:, 2:] > sizes * (1 + MAX_OVERHANG)).any(axis=1)
    if what := diagnose_boxes(boxes_xywh, sizes):
        lines.append(what)
    elif is_far_over.mean() >= MIN_SUSPICIOUS:
        lines.append(
            f"{is_far_over.sum():,} of {number:,} boxes extend far beyond the right or bottom edge of their image: are "
            "they in pixels of the resized network input? Scale them back to the original image"
        )
    if number > 1 and scores.min() == scores.max():
        lines.append(f"all {number:,} scores are {scores[0]:g}: AP needs scores that rank detections by confidence")
    is_detected = np.zeros(len(image_ids), bool)
    is_detected[position] = True
    has_objects = np.zeros(len(image_ids), bool)
    has_objects[coco.image_indices] = True
    if is_detected[has_objects].mean() < MIN_COVERED:
        lines.append(
            f"covers {is_detected.sum():,} of {len(image_ids):,} images: a subset or a different split? Objects on the "
            "other images count as missed"
        )
    return [f"{path}: {line}" for line in lines]


def permutation_warning(file: ResultsFile, coco: CocoFile, ap: np.ndarray) -> str | None:
    """Return a warning if the boxes of a file are right but its category ids are permuted; otherwise None.

    ap: (C,), AP of each class, nan without objects. A detector that confuses all classes with a few others has low AP
    too. So the permutation that explains most has to explain MIN_PERMUTED of the objects of the median class, and twice
    what the ids in the file explain."""
    known = ~np.isnan(ap)
    if np.mean(ap[known] <= MAX_AP) < 0.9 or known.sum() < 2:
        return None
    counts = class_on_objects(file.detections, coco)
    shares = np.where(counts >= 3, counts, 0) / np.maximum(coco.class_counts, 1)[:, None]  # fewer may be chance
    right = np.diag(shares).copy()
    np.fill_diagonal(shares, 0)
    best = linear_sum_assignment(shares, maximize=True)  # rows: classes of objects; columns: classes of detections
    explained = shares[best]
    if np.median(explained[known]) < max(MIN_PERMUTED, 2 * np.median(right[known])):
        return None
    of_object, of_detection = (index[(explained * coco.class_counts).argmax()] for index in best)
    detected, true = (f"category {coco.category_ids[k]} ({coco.class_names[k]})" for k in (of_detection, of_object))
    return (
        f"{file.path}: {detected} mostly covers objects of {true}: are the category ids permuted? Compare the order of "
        f"the detector's classes with {coco.annotations_path}"
    )


def class_on_objects(detections: np.ndarray, coco: CocoFile) -> np.ndarray:
    """Count objects by their class and by the class of the best detection on them, whatever its class, (C, C).

    Crowds are left out. A detection is on an object if their IoU is at least 0.5."""
    counts = np.zeros((len(coco.class_names),) * 2)
    best_first = detections[np.lexsort((-detections[:, 5], detections[:, 0]))]
    labels = np.searchsorted(coco.category_ids, best_first[:, 6])
    image_ids = np.array([image.id for image in coco.images])
    starts, ends = (np.searchsorted(best_first[:, 0], image_ids, side) for side in ("left", "right"))
    for index, span in enumerate(map(slice, starts, ends)):
        boxes_xyxy, classes, is_crowd = coco.objects(index)
        boxes_xywh = np.hstack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]])[~is_crowd].astype(np.float64)
        if len(boxes_xywh) and span.start < span.stop:
            ious = mask.iou(best_first[span, 1:5], boxes_xywh, np.zeros(len(boxes_xywh)))
            is_covered = (ious >= 0.5).any(axis=0)
            best = (ious >= 0.5).argmax(axis=0)[is_covered]
            np.add.at(counts, (classes[~is_crowd][is_covered] - 1, labels[span][best]), 1)
    return counts
