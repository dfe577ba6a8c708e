"""What a finished detection run leaves in its experiment directory.

image_statistics.npz  which detection found an object at which IoU, per image (stats.image_statistics)
detections.json       every detection in COCO's results format: the very list that was scored
detections.png        ground truth beside detections on a few validation images
precision_recall.png  precision by recall, at each IoU and of each class
class_scores.png      AP of each class
confusion.png         which class is taken for which, which is missed, which is found where nothing is
examples/             the same images one by one, small: <image id>.jpg the detections, <image id>_truth.jpg the truth
results.json          scores, per class too, and the errors behind them, with the protocol they were taken under, the
                      annotation files they rest on and what they cost; written when all of the above is there
README.md             what was trained, on what, how, how well and how long, for people
"""

import json
from pathlib import Path

import numpy as np

from detection.coco.annotations import shown_size
from detection.coco.errors import confusion_matrix, error_breakdown
from detection.coco.evaluation import METRICS, as_dicts, evaluate_coco, image_statistics, summary_of
from detection.task import SHOWN_SCORE, DetectionTask, example_pictures
from engine.compute.cost import forward_gflops
from engine.files import write_text
from records.experiment import write_readme
from runs import common_facts, common_record, recipe_fact, started_fact


def write_record(experiment: Path, task: DetectionTask) -> dict:
    """Write all this from what `task` evaluated last; returns what results.json holds.

    Called on rank 0, after `environment.json` and `metrics.jsonl` are complete."""
    from detection.drawing.charts import draw_class_scores, draw_confusion, draw_precision  # imports matplotlib
    from detection.drawing.pictures import draw_detections, draw_examples

    config, val, results = task.config, task.val, as_dicts(task.results)
    evaluation = evaluate_coco(task.truth, results)
    scores = summary_of(evaluation)
    common = common_record(experiment, task, forward_gflops(task.model, task.model.input_size))
    record = {
        "task": "detection",
        "variant": {"backbone": config.model.backbone, "neck": config.model.neck},
        "category_ids": val.category_ids,
        "scores": {name: scores[name] for name in METRICS},
        "per_class": scores["per_class"],
        "errors": error_breakdown(evaluation),
        "default_boxes": task.anchor_fit._asdict(),
        "protocol": {
            "annotations": val.annotations_path.name,
            "annotations_sha256": val.sha256,
            "images": len(val.images),
            "classes": val.class_names,
            **({"short_side": val.short_side} if val.short_side else {}),  # of shrunken images
            **config.eval.model_dump(),
        },
        **common,
    }
    matches = image_statistics(evaluation)
    matches.save(experiment)
    write_text(experiment / "detections.json", json.dumps(results))
    pictures = example_pictures(val, task.results)
    draw_detections(experiment / "detections.png", list(pictures.values()), val.class_names, SHOWN_SCORE)
    draw_examples(experiment / "examples", pictures, val.class_names)
    draw_precision(experiment / "precision_recall.png", matches)
    objects = np.bincount(matches.object_classes, minlength=len(val.class_names))
    draw_class_scores(experiment / "class_scores.png", scores["per_class"], objects.tolist())
    confusions = confusion_matrix(evaluation, SHOWN_SCORE)
    draw_confusion(experiment / "confusion.png", confusions, val.class_names, SHOWN_SCORE)
    write_readme(
        experiment,
        title=f"{config.model.backbone} with neck {config.model.neck}",
        facts=facts(experiment, task, record),
        scores=record["scores"],
        pictures={
            "detections.png": f"Ground truth and detections of score {SHOWN_SCORE} or more",
            "precision_recall.png": "Precision by recall",
            "class_scores.png": "AP of each class",
            "confusion.png": "Which class is taken for which",
            "curves.png": "Training losses, validation scores and learning rate by epoch",
        },
    )
    # Last: it says that the experiment is finished.
    write_text(experiment / "results.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def facts(experiment: Path, task: DetectionTask, record: dict) -> dict[str, str]:
    """The bullet list of the experiment's README: label to sentence."""
    config = task.config
    start_from = config.model.start_from
    return {
        "Model": f"{config.model.backbone}, neck {config.model.neck}, {task.model.input_size} pixels, "
        f"{record['cost']['parameters'] / 1e6:.2f} M parameters, {len(task.model.anchors_cxcywh):,} default boxes; "
        + (f"fine-tuned from {start_from}" if start_from else started_fact(experiment, config.model.weights)),
        "Data": f"`{config.data.root}`: {shown_size(task.train)} to train on, {shown_size(task.val)} to validate, "
        f"{len(task.val.class_names)} classes",
        "Default boxes": str(task.anchor_fit),
        "Recipe": f"{recipe_fact(experiment, config)}, box loss weight {config.loss.box_weight:g} (1 is the SSD "
        "paper's)",
        "Scored": f"weights: {record['weights']}; all {record['protocol']['images']} images, COCO mAP by "
        f"pycocotools; score >= {config.eval.score_threshold}, NMS at IoU {config.eval.nms_iou}, "
        f"best {config.eval.max_detections}",
        **common_facts(experiment, record, "detection.training"),
    }
