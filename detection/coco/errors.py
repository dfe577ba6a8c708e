"""Why detections lose AP50: six kinds of errors (TIDE, Bolya et al., arXiv 2008.08115, section 2), by hotcoco.

A detection that matches no object at IoU 0.5 is of the first kind that fits. The last column is its correction:

localisation    IoU of 0.1 to 0.5 with an object of its class: moved to that object
classification  IoU of 0.5 or more with an object of another class: given that object's class
duplicate       IoU of 0.5 or more with an object that a detection of higher score has found: left out
background      no IoU above 0.1 with any object: left out
both            the rest: an object of another class, and poorly localised: left out

An object is missed if it is neither found nor would be by a correction of class or place; corrected, it is removed.

The delta of a kind is the rise of AP50 if all its errors, and no others, were corrected; the deltas do not add up to
1 - AP50. If several detections would be corrected to one object, the one of highest score is; the others are left out.
"""

from collections import defaultdict

import numpy as np
from hotcoco import COCO, COCOeval
from pycocotools import mask
from pycocotools.cocoeval import COCOeval as PycocotoolsEvaluation

from detection.coco.evaluation import matched

KINDS = {
    "classification": "Cls", "localisation": "Loc", "both": "Both",
    "duplicate": "Dupe", "background": "Bkg", "missed": "Miss",
}  # fmt: skip


def error_breakdown(evaluation: PycocotoolsEvaluation) -> dict:
    """Count the errors of each kind and what they cost. evaluation: of evaluate_coco.

    Returns "AP50", "delta_AP50": {kind: 0 to 1} and "counts": {kind: number}, the kinds being those of KINDS.
    AP50 and its deltas are None if no object counts. So is the delta of `missed` if every object is missed."""
    objects, found = _what_counts(evaluation)
    dataset = {
        "images": [{"id": number} for number in range(len(evaluation.params.imgIds))],
        "categories": [{"id": number, "name": str(number)} for number in range(len(evaluation.params.catIds))],
    }
    tide = COCOeval(COCO(dataset | {"annotations": objects}), COCO(dataset | {"annotations": found}), "bbox")
    tide.evaluate()
    errors = tide.tide_errors(pos_thr=0.5, bg_thr=0.1)
    counts = {kind: errors["counts"][key] for kind, key in KINDS.items()}
    delta = {kind: errors["delta_ap"][key] if objects else None for kind, key in KINDS.items()}
    if counts["missed"] == len(objects):
        delta["missed"] = None
    return {"AP50": errors["ap_base"] if objects else None, "delta_AP50": delta, "counts": counts}


def confusion_matrix(evaluation: PycocotoolsEvaluation, score_threshold: float) -> np.ndarray:
    """Count which class the objects are taken for. evaluation: of evaluate_coco.

    Detections below score_threshold are left out. The diagonal has the matches that AP50 counts as right. The rest is
    matched across classes: the highest score first, to the object with the highest IoU, if that is at least 0.5, each
    object once. Crowds and detections in them are left out. (hotcoco's matrix differs in both respects.)

    Returns (C + 1, C + 1) int64, classes in the order of their ids, rows true, columns detected; the last row is no
    object (also for a duplicate), the last column not found."""
    class_number = {category_id: number for number, category_id in enumerate(evaluation.params.catIds)}
    nothing = len(class_number)
    counts = np.zeros((nothing + 1, nothing + 1), np.int64)
    missed, loose = defaultdict(list), defaultdict(list)  # by image; (class, box) and (score, class, box)
    for entry in matched(evaluation):
        label, image_id = class_number[entry["category_id"]], entry["image_id"]
        is_sure = np.array(entry["dtScores"]) >= score_threshold
        matches, ignored = entry["dtMatches"][0], entry["dtIgnore"][0].astype(bool)  # at IoU 0.5
        is_right = is_sure & (matches > 0) & ~ignored
        counts[label, label] += is_right.sum()
        found = set(matches[is_right])
        for number, is_ignored in zip(entry["gtIds"], entry["gtIgnore"], strict=True):
            if number not in found and not is_ignored:
                missed[image_id].append((label, evaluation.cocoGt.anns[number]["bbox"]))
        for position in np.flatnonzero(is_sure & (matches == 0) & ~ignored):
            box = evaluation.cocoDt.anns[entry["dtIds"][position]]["bbox"]
            loose[image_id].append((entry["dtScores"][position], label, box))
    for image_id in missed | loose:
        objects = missed[image_id]
        detections = sorted(loose[image_id], key=lambda detection: -detection[0])
        boxes, others = [box for *_, box in detections], [box for _, box in objects]
        overlaps = np.array(mask.iou(boxes, others, [0] * len(others))).reshape(len(boxes), len(others))
        is_free = np.ones(len(objects), bool)
        for (_, label, _), overlap in zip(detections, overlaps, strict=True):
            overlap = np.where(is_free, overlap, 0)
            if overlap.max(initial=0) < 0.5:
                counts[nothing, label] += 1
                continue
            best = overlap.argmax()
            is_free[best] = False
            counts[objects[best][0], label] += 1
        for (label, _), is_missed in zip(objects, is_free, strict=True):
            counts[label, nothing] += is_missed
    return counts


def _what_counts(evaluation: PycocotoolsEvaluation) -> tuple[list[dict], list[dict]]:
    """Return the objects and detections that AP50 is computed from: no crowds, and no detections in one.

    (hotcoco 1.3 would move a detection at the edge of a crowd to it.) Images and classes are numbered from 0."""
    image_number = {image_id: number for number, image_id in enumerate(evaluation.params.imgIds)}
    class_number = {category_id: number for number, category_id in enumerate(evaluation.params.catIds)}
    objects, found = [], []
    for entry in matched(evaluation):
        ids = {"image_id": image_number[entry["image_id"]], "category_id": class_number[entry["category_id"]]}
        for number, ignored in zip(entry["gtIds"], entry["gtIgnore"], strict=True):
            if not ignored:
                objects.append(evaluation.cocoGt.anns[number] | ids)
        for number, ignored in zip(entry["dtIds"], entry["dtIgnore"][0], strict=True):  # at IoU 0.5
            if not ignored:
                found.append(evaluation.cocoDt.anns[number] | ids)
    return objects, found
