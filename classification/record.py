"""What a finished classification run leaves in its experiment directory, besides what records/record.py writes.

image_statistics.npz  whether each image was guessed right (stats.image_statistics)
predictions.csv       the best guesses for every image, with their probabilities
confusion.png         which classes were taken for which
examples.png          guesses for a few validation images
"""

import csv
import io
from itertools import chain
from pathlib import Path

import numpy as np

from classification.task import ClassificationTask, Guesses
from data import LabelledImages
from engine.compute.cost import forward_gflops
from engine.files import write_text
from records.record import TaskRecord
from stats.image_statistics import Hits
from training import Evaluation


def record(experiment: Path, task: ClassificationTask, evaluation: Evaluation) -> TaskRecord:
    """Write the files above; return what results.json and README.md hold of this task."""
    from classification.pictures import draw_confusion, draw_examples  # imports matplotlib

    config, model, val, guesses = task.config, task.config.model, task.val, evaluation.predictions
    right = guesses.classes == val.labels[:, None]
    hits = Hits(
        image_ids=np.array([val.name(image) for image in guesses.image_ids]),
        class_names=np.array(val.class_names),
        labels=val.labels.astype(np.int16),
        hits=right[:, 0],
        in_top5=right.any(axis=1),
    )
    hits.save(experiment)
    write_text(experiment / "predictions.csv", predictions_csv(guesses, val))
    draw_confusion(experiment / "confusion.png", val.labels, guesses.classes[:, 0], val.class_names)
    draw_examples(experiment / "examples.png", val, guesses)
    name = model.name if model.shift else f"{model.name}, no shift"
    return TaskRecord(
        module="classification.training",
        results={
            "task": "classification",
            "variant": {"model": name, "position": model.position},
            "scores": evaluation.scores,
            "per_class": val.mean_by_class("top1", right[:, 0]),
            "protocol": {"images_sha256": val.digest, "images": len(val), "classes": val.class_names},
        },
        gflops=forward_gflops(task.model, model.input_size),
        title=f"{name} with position {model.position}",
        model=f"{model.name}, {model.input_size} pixels, patches of {model.patch_size}, "
        f"{'shifted windows' if model.shift else 'windows not shifted'}, position {model.position}",
        data=f"{len(task.train):,} images to train on, {len(val):,} to validate, {len(val.class_ids)} classes",
        scored=f"all {len(val)} images, shorter side resized to {config.resize_size} pixels, center crop",
        facts={},
        pictures={
            "confusion.png": "Which classes were taken for which",
            "examples.png": "Guesses for a few validation images",
        },
    )


def predictions_csv(guesses: Guesses, images: LabelledImages) -> str:
    """Return a line per image: its name, its true class, and the guesses with their probabilities, best first."""
    names, output = images.class_names, io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    ranks = range(1, guesses.classes.shape[1] + 1)
    writer.writerow(["image", "true", *(name for rank in ranks for name in (f"guess_{rank}", f"probability_{rank}"))])
    for image, label, classes, probabilities in zip(guesses.image_ids, images.labels, *guesses[1:], strict=True):
        best = zip((names[guess] for guess in classes), map("{:.4f}".format, probabilities), strict=True)
        writer.writerow([images.name(image), names[label], *chain.from_iterable(best)])
    return output.getvalue()
