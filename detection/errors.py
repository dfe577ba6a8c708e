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
"""

from collections.abc import Sequence
from pathlib import Path

from hotcoco import COCO, COCOeval
from pycocotools.cocoeval import COCOeval as PycocotoolsEvaluation

from detection.evaluation import evaluate_coco

KINDS = {
    "classification": "Cls", "localisation": "Loc", "both": "Both",
    "duplicate": "Dupe", "background": "Bkg", "missed": "Miss",
}  # fmt: skip


def error_breakdown(annotations_path: str | Path, results: Sequence[dict]) -> dict:
    """Count the errors of each kind and what they cost. Arguments and errors are those of coco_scores.

    Returns "AP50", "delta_AP50": {kind: 0 to 1} and "counts": {kind: number}, the kinds being those of KINDS.
    AP50 and its deltas are None where no object counts. So is the delta of `missed` where every object is missed: not
    asking for them leaves nothing to score. (Hence a class of which all is missed adds nothing to that delta.)"""
    evaluation = evaluate_coco(annotations_path, results, by_size=False)
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


def _what_counts(evaluation: PycocotoolsEvaluation) -> tuple[list[dict], list[dict]]:
    """The objects and detections that AP50 is made of: no crowds, and nothing that was found in one.

    hotcoco 1.3 would call a detection at the edge of a crowd poorly localised, and mend it to the crowd. It takes no
    negative ids either, so images and classes are numbered anew, in the evaluator's order."""
    image_number = {image_id: number for number, image_id in enumerate(evaluation.params.imgIds)}
    class_number = {category_id: number for number, category_id in enumerate(evaluation.params.catIds)}
    objects, found = [], []
    for entry in filter(None, evaluation.evalImgs):
        ids = {"image_id": image_number[entry["image_id"]], "category_id": class_number[entry["category_id"]]}
        for number, ignored in zip(entry["gtIds"], entry["gtIgnore"], strict=True):
            if not ignored:
                objects.append(evaluation.cocoGt.anns[number] | ids)
        for number, ignored in zip(entry["dtIds"], entry["dtIgnore"][0], strict=True):  # at IoU 0.5
            if not ignored:
                found.append(evaluation.cocoDt.anns[number] | ids)
    return objects, found
