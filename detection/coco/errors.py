"""Count six kinds of detection errors and their cost in AP50 (TIDE, arXiv 2008.08115, section 2), using hotcoco.

A detection that matches no object at IoU 0.5 gets the first kind below that fits. Arrows show how TIDE corrects it.

localisation    IoU of 0.1 to 0.5 with an object of its class -> moved to that object
classification  IoU of 0.5 or more with an object of a different class -> gets the class of that object
duplicate       IoU of 0.5 or more with an object already matched by a detection with a higher score -> removed
background      no IoU above 0.1 with any object -> removed
both            all other errors: wrong class and poor localisation -> removed

An object is missed if no detection matches it, even after correcting class or box. TIDE removes such objects.

The delta of a kind is the increase in AP50 if only this kind were corrected. The deltas do not add up to 1 - AP50. If
several detections would be corrected to one object, all except the detection with the highest score are removed.
"""

from collections import defaultdict

import numpy as np
from hotcoco import COCO, COCOeval
from pycocotools import mask
from pycocotools.cocoeval import COCOeval as PycocotoolsEvaluation

from detection.coco.evaluation import matched_entries

KINDS = {
    "classification": "Cls", "localisation": "Loc", "both": "Both",
    "duplicate": "Dupe", "background": "Bkg", "missed": "Miss",
}  # fmt: skip


def error_breakdown(evaluation: PycocotoolsEvaluation) -> dict:
    """Count the errors of each kind and their cost in AP50. evaluation: returned by evaluate_coco.

    Returns {"AP50": ..., "delta_AP50": {kind: 0 to 1}, "counts": {kind: number}} with the kinds of KINDS.
    AP50 and all deltas are None if there are no objects. The delta of `missed` is None if every object is missed."""
    objects, found = _scored_records(evaluation)
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
    """Compute the confusion matrix of classes. evaluation: returned by evaluate_coco.

    Ignores detections below score_threshold, crowds, and detections in crowds. The diagonal counts the true positives
    of AP50. The remaining detections, highest score first, are then matched across classes to the unmatched object with
    the highest IoU, if this IoU is at least 0.5. (hotcoco's matrix treats crowds and true positives differently.)

    Returns (C + 1, C + 1) int64: rows are true classes, columns predicted classes, both in the order of category ids.
    The last row counts detections without an object, including duplicates; the last column counts missed objects."""
    class_number = {category_id: number for number, category_id in enumerate(evaluation.params.catIds)}
    nothing = len(class_number)
    counts = np.zeros((nothing + 1, nothing + 1), np.int64)
    missed, unmatched = defaultdict(list), defaultdict(list)  # image id -> [(class, box)], [(score, class, box)]
    for entry in matched_entries(evaluation):
        label, image_id = class_number[entry["category_id"]], entry["image_id"]
        is_confident = np.array(entry["dtScores"]) >= score_threshold
        matches, ignored = entry["dtMatches"][0], entry["dtIgnore"][0].astype(bool)  # at IoU 0.5
        is_correct = is_confident & (matches > 0) & ~ignored
        counts[label, label] += is_correct.sum()
        found = set(matches[is_correct])
        for number, is_ignored in zip(entry["gtIds"], entry["gtIgnore"], strict=True):
            if number not in found and not is_ignored:
                missed[image_id].append((label, evaluation.cocoGt.anns[number]["bbox"]))
        for position in np.flatnonzero(is_confident & (matches == 0) & ~ignored):
            box = evaluation.cocoDt.anns[entry["dtIds"][position]]["bbox"]
            unmatched[image_id].append((entry["dtScores"][position], label, box))
    for image_id in missed | unmatched:
        objects = missed[image_id]
        detections = sorted(unmatched[image_id], key=lambda detection: -detection[0])
        boxes, truth = [box for *_, box in detections], [box for _, box in objects]
        ious = np.array(mask.iou(boxes, truth, [0] * len(truth))).reshape(len(boxes), len(truth))
        is_free = np.ones(len(objects), bool)
        for (_, label, _), iou in zip(detections, ious, strict=True):
            iou = np.where(is_free, iou, 0)
            if iou.max(initial=0) < 0.5:
                counts[nothing, label] += 1
                continue
            best = iou.argmax()
            is_free[best] = False
            counts[objects[best][0], label] += 1
        for (label, _), is_missed in zip(objects, is_free, strict=True):
            counts[label, nothing] += is_missed
    return counts


def _scored_records(evaluation: PycocotoolsEvaluation) -> tuple[list[dict], list[dict]]:
    """Return the objects and detections that AP50 is computed from. Image and category ids become indices from 0.

    Crowds are excluded: hotcoco 1.3 would count a detection that partly overlaps a crowd as a localisation error."""
    image_number = {image_id: number for number, image_id in enumerate(evaluation.params.imgIds)}
    class_number = {category_id: number for number, category_id in enumerate(evaluation.params.catIds)}
    objects, found = [], []
    for entry in matched_entries(evaluation):
        ids = {"image_id": image_number[entry["image_id"]], "category_id": class_number[entry["category_id"]]}
        for number, ignored in zip(entry["gtIds"], entry["gtIgnore"], strict=True):
            if not ignored:
                objects.append(evaluation.cocoGt.anns[number] | ids)
        for number, ignored in zip(entry["dtIds"], entry["dtIgnore"][0], strict=True):  # at IoU 0.5
            if not ignored:
                found.append(evaluation.cocoDt.anns[number] | ids)
    return objects, found
