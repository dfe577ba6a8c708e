"""Write the detection-specific files of a finished run. records/record.py writes the files that all tasks share.

image_statistics.npz  for each image and IoU threshold, which detections match an object (stats.image_statistics)
detections.json       all detections that were scored, in COCO's results format
detections.png        ground truth beside detections on a few validation images
precision_recall.png  precision-recall curves by IoU threshold and by class
class_scores.png      AP per class
confusion.png         confusion matrix of the classes, with missed objects and detections on background
examples/             the images of detections.png, one file each: <image id>.jpg, <image id>_truth.jpg (ground truth)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from detection.coco.annotations import CocoFile, describe_size
from detection.coco.errors import confusion_matrix, error_breakdown
from detection.coco.evaluation import METRICS, as_dicts, evaluate_coco, image_statistics, summarise_evaluation
from detection.detector import pixel_statistics
from detection.network.postprocess import PostprocessConfig
from detection.recipe import describe_recipe
from detection.task import DetectionTask
from engine.compute.cost import forward_gflops
from engine.files import write_text
from engine.terminal import counted
from records.record import TaskRecord
from training import Evaluation


def record(experiment: Path, task: DetectionTask, evaluation: Evaluation) -> TaskRecord:
    """Write the files that the module docstring lists. Returns the task's part of results.json and README.md."""
    from detection.drawing.charts import draw_class_scores, draw_confusion, draw_precision  # imports matplotlib
    from detection.drawing.pictures import SHOWN_SCORE, draw_detections, draw_examples, examples

    statistics = pixel_statistics(task.model)
    config, model, val, results = task.config, task.config.model, task.val, as_dicts(evaluation.predictions)
    coco = evaluate_coco(task.truth, results)
    scores, matches = summarise_evaluation(coco), image_statistics(coco)
    matches.save(experiment)
    write_text(experiment / "detections.json", json.dumps(results))
    pictures = examples(val, evaluation.predictions)
    draw_detections(experiment / "detections.png", list(pictures.values()))
    draw_examples(experiment / "examples", pictures)
    draw_precision(experiment / "precision_recall.png", matches)
    objects = np.bincount(matches.object_classes, minlength=len(val.class_names))
    draw_class_scores(experiment / "class_scores.png", scores["per_class"], objects.tolist())
    confusions = confusion_matrix(coco, SHOWN_SCORE)
    draw_confusion(experiment / "confusion.png", confusions, val.class_names, SHOWN_SCORE)
    frozen = "" if model.freeze == "none" else f" with frozen {model.freeze}"
    role = "tuning (held out of the training images)" if config.data.holdout else "validation"
    return TaskRecord(
        module="detection.training",
        results={
            "task": "detection",
            "variant": {"backbone": model.backbone, "neck": model.neck},
            "category_ids": val.category_ids,
            "scores": {name: scores[name] for name in METRICS},
            "per_class": scores["per_class"],
            "errors": error_breakdown(coco),
            "default_boxes": task.anchor_fit._asdict(),
            "normalization": statistics,
            "score_function": task.model.score_function,
            "protocol": protocol(val, config.eval),
        },
        gflops=forward_gflops(task.model, task.model.input_size),
        title=f"{model.backbone} with neck {model.neck}",
        model=f"{model.backbone}{frozen}, neck {model.neck}, {task.model.input_size} pixels, "
        f"{len(task.model.anchors_cxcywh):,} default boxes",
        data=f"{describe_size(task.train)} for training, {describe_size(val)} for {role}, "
        f"{counted(len(val.class_names), 'class', 'classes')}",
        scored=f"COCO mAP by pycocotools on all {len(val.images)} images for {role}; score "
        f"({task.model.score_function}) >= {config.eval.score_threshold}, NMS at IoU {config.eval.nms_iou}, best "
        f"{config.eval.max_detections} per image",
        facts={
            "Normalisation": f"mean {statistics['mean']}, std {statistics['std']} (RGB from 0 to 1)",
            "Default boxes": f"{task.anchor_fit}; scales {task.anchor_fit.scales}",
            "Detector recipe": describe_recipe(config),
            "Box loss weight": f"{config.loss.box_weight:g} (SSD paper: 1)",
        },
        pictures={
            "detections.png": f"Ground truth, and detections with score {SHOWN_SCORE} or more",
            "precision_recall.png": "Precision-recall curves",
            "class_scores.png": "AP per class",
            "confusion.png": "Confusion matrix of the classes",
        },
    )


def protocol(val: CocoFile, settings: PostprocessConfig) -> dict[str, Any]:
    """Return how the scores on a validation set are computed, for the records."""
    return {
        "annotations": val.annotations_path.name,
        "annotations_sha256": val.sha256,
        "images": len(val.images),
        "classes": val.class_names,
        **({"short_side": val.short_side} if val.short_side else {}),  # short side of images that were shrunk
        **settings.model_dump(),
    }
