"""Why detections lose AP50: six kinds of errors (TIDE, Bolya et al., arXiv 2008.08115, section 2), by hotcoco.

A detection that matches no object at IoU 0.5 is of the first kind that fits:

localisation    IoU of 0.1 to 0.5 with an object of its class; mended: it lies as it should
classification  IoU of 0.5 or more with an object of another class; mended: it has that object's class
duplicate       IoU of 0.5 or more with an object that a surer detection has found; mended: left out
background      no IoU above 0.1 with any object; mended: left out
both            what remains: an object of another class, and poorly; mended: left out

and an object is missed if it is neither found nor would be by mending class or place; mended: not asked for.

The delta of a kind is what AP50 would rise by if all its errors, and no others, were mended; the deltas do not add up
to 1 - AP50. Of several detections that would be mended to one object, the surest is and the others are left out.

`confusion_matrix` says which class is taken for which, in the same terms.
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
    AP50 and its deltas are None where no object counts. So is the delta of `missed` where every object is missed: not
    asking for them leaves nothing to score. (Hence a class of which all is missed adds nothing to that delta.)"""
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

    Detections below score_threshold are left out. On the diagonal are the matches that AP50 counts as right. What is
    left over is matched across classes: the surest detection first, to the object that it overlaps most, by an IoU of
    0.5 or more, each object once. Crowds, and what is found in them, are left out. (hotcoco 1.3 matches across classes
    at once, so that its diagonal is not AP50's, and takes what is found in a crowd for an error.)

    Returns (C + 1, C + 1) int64, classes in the order of their ids, rows what it is, columns what it is taken for; the
    last row is nothing (a duplicate lies on nothing, too), the last column nothing found."""
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
    """The objects and detections that AP50 is made of: no crowds, and nothing that was found in one.

    hotcoco 1.3 would call a detection at the edge of a crowd poorly localised, and mend it to the crowd. It takes no
    negative ids either, so images and classes are numbered anew, in the evaluator's order."""
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
