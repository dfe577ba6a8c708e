"""Files that a finished classification run writes to its experiment, in addition to those of records/record.py.

image_statistics.npz  whether each image was classified correctly (stats.image_statistics)
predictions.csv       the top-5 predictions for every image, with their probabilities
confusion.png         the confusion matrix
examples.png          predictions for a few validation images
"""

import csv
import io
from itertools import chain
from pathlib import Path

import numpy as np

from classification.task import ClassificationTask, Predictions
from data import LabelledImages
from engine.compute.cost import forward_gflops
from engine.files import write_text
from records.record import TaskRecord
from stats.image_statistics import Hits
from training import Evaluation


def record(experiment: Path, task: ClassificationTask, evaluation: Evaluation) -> TaskRecord:
    """Write the files above. Return what this task adds to results.json and README.md."""
    from classification.pictures import draw_confusion, draw_examples  # imports matplotlib

    config, model, val, predictions = task.config, task.config.model, task.val, evaluation.predictions
    is_correct = predictions.classes == val.labels[:, None]  # (N, K)
    hits = Hits(
        image_ids=np.array([val.name(image) for image in predictions.image_ids]),
        class_names=np.array(val.class_names),
        labels=val.labels.astype(np.int16),
        hits=is_correct[:, 0],
        in_top5=is_correct.any(axis=1),
    )
    hits.save(experiment)
    write_text(experiment / "predictions.csv", predictions_csv(predictions, val))
    draw_confusion(experiment / "confusion.png", val.labels, predictions.classes[:, 0], val.class_names)
    draw_examples(experiment / "examples.png", val, predictions)
    name = model.name if model.shift else f"{model.name}, no shift"
    return TaskRecord(
        module="classification.training",
        results={
            "task": "classification",
            "variant": {"model": name, "position": model.position},
            "scores": evaluation.scores,
            "per_class": val.mean_by_class("top1", is_correct[:, 0]),
            "protocol": {"images_sha256": val.digest, "images": len(val), "classes": val.class_names},
        },
        gflops=forward_gflops(task.model, model.input_size),
        title=f"{name} with position encoding {model.position}",
        model=f"{model.name}, input size {model.input_size} pixels, patch size {model.patch_size}, "
        f"{'shifted' if model.shift else 'unshifted'} windows, position encoding {model.position}",
        data=f"{len(task.train):,} training images, {len(val):,} validation images, {len(val.class_ids)} classes",
        scored=f"all {len(val)} images, shorter side resized to {config.resize_size} pixels, center crop",
        facts={},
        pictures={
            "confusion.png": "Confusion matrix",
            "examples.png": "Predictions for a few validation images",
        },
    )


def predictions_csv(predictions: Predictions, images: LabelledImages) -> str:
    """Return a CSV with a line per image: name, true class, and the predictions with probabilities, best first."""
    names, output = images.class_names, io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    ranks = range(1, predictions.classes.shape[1] + 1)
    writer.writerow(["image", "true", *(name for rank in ranks for name in (f"guess_{rank}", f"probability_{rank}"))])
    for image, label, classes, probs in zip(predictions.image_ids, images.labels, *predictions[1:], strict=True):
        best = zip((names[predicted] for predicted in classes), map("{:.4f}".format, probs), strict=True)
        writer.writerow([images.name(image), names[label], *chain.from_iterable(best)])
    return output.getvalue()
