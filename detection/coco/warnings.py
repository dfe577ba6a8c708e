"""What makes the score of a sound data set mislead: images that are in it twice, and a best score below 1.

pycocotools looks at no more than 100 detections of a class in an image. A box without area counts as an object, and
nothing can match it. A box that reaches over the edge of its image can be missed at high IoU thresholds.
"""

import numpy as np

from detection.coco.annotations import CocoFile
from detection.coco.evaluation import MOST_DETECTIONS, quick_scores
from engine.inputs import repeated_names, shared_between
from engine.terminal import counted


def leak_warnings(train: CocoFile, val: CocoFile) -> list[str]:
    """Return a line each: validation images that are also training images, and file names repeated in a half."""
    shared = shared_between(train.image_paths, val.image_paths)
    lines = [str(shared)] if shared else []
    for coco in (train, val):
        if repeated := repeated_names([image.file_name for image in coco.images]):
            lines.append(f"{coco.annotations_path}: {repeated}")
    return lines


def ceiling_warning(coco: CocoFile) -> str | None:
    """Return why mAP on a checked annotation file cannot reach 1, and what it can reach; None if it can."""
    pairs, counts = np.unique(
        np.stack([coco.image_indices, coco.labels])[:, ~coco.is_crowd], axis=1, return_counts=True
    )
    crowded = len(np.unique(pairs[0, counts > MOST_DETECTIONS]))
    most = MOST_DETECTIONS
    limit = f"more than {most} objects of a class, and COCO's protocol counts at most {most} detections of these"
    reasons = (
        (coco.num_left_out, "box without area counts as missed", "boxes without area count as missed"),
        (crowded, f"image holds {limit}", f"images hold {limit}"),
        (coco.num_cut, "box reaches over the edge of its image", "boxes reach over the edge of their image"),
    )
    found = [counted(*reason) for reason in reasons if reason[0]]
    best = highest_map(coco) if found else None
    if best is None or best > 0.9995:  # shown as 1.000
        return None
    return f"{'; '.join(found)}: mAP cannot exceed {best:.3f}"


def highest_map(coco: CocoFile) -> float | None:
    """Return mAP if every object was detected exactly, as far as it is inside its image; None if mAP is undefined."""
    counts = ~coco.is_crowd
    image_ids = np.array([image.id for image in coco.images])[coco.image_indices[counts]]
    boxes_xyxy = coco.boxes_xyxy[counts].astype(np.float64)
    category_ids = np.array(coco.category_ids)[coco.labels[counts] - 1]
    scores = np.ones(len(image_ids))
    results = np.column_stack(
        [image_ids, boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], scores, category_ids]
    )
    return quick_scores(coco.annotations_path, results)["mAP"]
