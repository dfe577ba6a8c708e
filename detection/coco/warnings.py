"""Warn about valid data sets with misleading scores: duplicate images, or a highest possible mAP below 1.

pycocotools scores at most 100 detections per class and image. A box without area counts as an object, but no detection
can match it. A box that extends beyond the edge of its image can be missed at high IoU thresholds.
"""

import numpy as np

from detection.coco.annotations import CocoFile
from detection.coco.evaluation import MAX_DETECTIONS, quick_scores
from engine.inputs import find_repeated_names, find_shared_files
from engine.terminal import counted


def leak_warnings(train: CocoFile, val: CocoFile) -> list[str]:
    """Return one line if validation images are also training images, and one per split with repeated file names."""
    shared = find_shared_files(train.image_paths, val.image_paths)
    lines = [str(shared)] if shared else []
    for coco in (train, val):
        if repeated := find_repeated_names([image.file_name for image in coco.images]):
            lines.append(f"{coco.annotations_path}: {repeated}")
    return lines


def ceiling_warning(coco: CocoFile) -> str | None:
    """Return a warning with the highest possible mAP and the reasons if it is below 1; None if mAP can reach 1."""
    pairs, counts = np.unique(
        np.stack([coco.image_indices, coco.labels])[:, ~coco.is_crowd], axis=1, return_counts=True
    )
    crowded = len(np.unique(pairs[0, counts > MAX_DETECTIONS]))
    most = MAX_DETECTIONS
    limit = f"more than {most} objects of one class, but COCO's protocol counts at most {most} detections per class"
    reasons = (
        (coco.num_discarded, "box without area counts as missed", "boxes without area count as missed"),
        (crowded, f"image has {limit}", f"images have {limit}"),
        (coco.num_clipped, "box extends beyond its image", "boxes extend beyond their image"),
    )
    found = [counted(*reason) for reason in reasons if reason[0]]
    best = highest_map(coco) if found else None
    if best is None or best > 0.9995:  # rounds to 1.000
        return None
    return f"{'; '.join(found)}: mAP cannot exceed {best:.3f}"


def highest_map(coco: CocoFile) -> float | None:
    """Return the mAP of perfect detections, clipped to their images; None if mAP is undefined (no objects)."""
    is_scored = ~coco.is_crowd
    image_ids = np.array([image.id for image in coco.images])[coco.image_indices[is_scored]]
    boxes_xyxy = coco.boxes_xyxy[is_scored].astype(np.float64)
    category_ids = np.array(coco.category_ids)[coco.labels[is_scored] - 1]
    scores = np.ones(len(image_ids))
    results = np.column_stack(
        [image_ids, boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], scores, category_ids]
    )
    return quick_scores(coco.annotations_path, results)["mAP"]
