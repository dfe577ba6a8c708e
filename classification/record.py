"""What a finished classification run leaves in its experiment directory.

image_statistics.npz  whether each image was guessed right (stats.image_statistics)
predictions.csv       the best guesses for every image, with their probabilities
confusion.png         which classes were taken for which
examples.png          guesses for a few validation images
results.json          scores, per class too, with the protocol they were taken under and what they cost; written last
README.md             what was trained, on what, how, how well and how long, for people
"""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from classification.task import ClassificationTask, Guesses, scores_of
from data import LabelledImages
from engine.compute.cost import forward_gflops
from engine.files import write_text
from records.experiment import write_readme
from runs import common_facts, common_record, recipe_fact, started_fact
from stats.image_statistics import Hits

if TYPE_CHECKING:
    from classification.pictures import Example

EXAMPLES = 12
EXAMPLE_GUESSES = 3


def write_record(experiment: Path, task: ClassificationTask) -> dict:
    """Write all this from what `task` evaluated last; returns what results.json holds.

    Called on rank 0, after `environment.json` and `metrics.jsonl` are complete."""
    from classification.pictures import draw_confusion, draw_examples  # imports matplotlib

    config, val, guesses = task.config, task.val, task.results
    record = {
        "task": "classification",
        "variant": {"model": model_name(task), "position": config.model.position},
        "scores": scores_of(guesses, val.labels, len(val.class_ids)),
        "per_class": per_class(guesses, val),
        "protocol": {
            "images_sha256": val.digest,
            "images": len(val),
            "classes": val.class_names,
        },
        **common_record(experiment, task, forward_gflops(task.model, config.model.input_size)),
    }
    hits(guesses, val).save(experiment)
    write_text(experiment / "predictions.csv", predictions_csv(guesses, val))
    draw_confusion(experiment / "confusion.png", val.labels, guesses.classes[:, 0], val.class_names)
    draw_examples(experiment / "examples.png", examples(guesses, val))
    write_readme(
        experiment,
        title=f"{model_name(task)} with position {config.model.position}",
        facts=facts(experiment, task, record),
        scores=record["scores"],
        pictures={
            "confusion.png": "Which classes were taken for which",
            "examples.png": "Guesses for a few validation images",
            "curves.png": "Training loss, validation scores and learning rate by epoch",
        },
    )
    # Last: it says that the experiment is finished.
    write_text(experiment / "results.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def model_name(task: ClassificationTask) -> str:
    """The row of a table that a run belongs to."""
    model = task.config.model
    return model.name if model.shift else f"{model.name}, no shift"


def facts(experiment: Path, task: ClassificationTask, record: dict) -> dict[str, str]:
    """The bullet list of the experiment's README: label to sentence."""
    config = task.config
    model = config.model
    return {
        "Model": f"{model.name}, {model.input_size} pixels, patches of {model.patch_size}, "
        f"{'shifted windows' if model.shift else 'windows not shifted'}, position {model.position}, "
        f"{record['cost']['parameters'] / 1e6:.2f} M parameters; {started_fact(experiment, model.weights)}",
        "Data": f"`{config.data.root}`: {len(task.train):,} images to train on, {len(task.val):,} to validate, "
        f"{len(task.val.class_ids)} classes",
        "Recipe": recipe_fact(experiment, config),
        "Scored": f"weights: {record['weights']}; all {len(task.val)} images, each once, resized to a shorter side of "
        f"{config.resize_size} pixels, its middle taken",
        **common_facts(experiment, record, "train_clf_imagenet"),
    }


def per_class(guesses: Guesses, images: LabelledImages) -> dict[str, dict[str, float | None]]:
    """Top-1 of the images of each class, and how many these are; None where there are none."""
    right = guesses.classes[:, 0] == images.labels
    scores = {}
    for label, name in enumerate(images.class_names):
        own = right[images.labels == label]
        scores[name] = {"top1": float(own.mean()) if len(own) else None, "images": len(own)}
    return scores


def hits(guesses: Guesses, images: LabelledImages) -> Hits:
    """What a comparison needs to compute the scores again on other choices of images."""
    right = guesses.classes == images.labels[:, None]
    return Hits(
        image_ids=np.array([images.name(image) for image in guesses.image_ids]),
        class_names=np.array(images.class_names),
        labels=images.labels.astype(np.int16),
        hits=right[:, 0],
        in_top5=right.any(axis=1),
    )


def predictions_csv(guesses: Guesses, images: LabelledImages) -> str:
    """A line per image: its name, its true class, and the guesses with their probabilities, best first."""
    names = images.class_names
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    ranks = range(1, guesses.classes.shape[1] + 1)
    writer.writerow(["image", "true", *(name for rank in ranks for name in (f"guess_{rank}", f"probability_{rank}"))])
    for image, label, classes, probabilities in zip(
        guesses.image_ids, images.labels, guesses.classes, guesses.probabilities, strict=True
    ):
        pairs = zip(classes, probabilities, strict=True)
        told = (text for guess, probability in pairs for text in (names[guess], f"{probability:.4f}"))
        writer.writerow([images.name(image), names[label], *told])
    return output.getvalue()


def examples(guesses: Guesses, images: LabelledImages) -> list["Example"]:
    """A few images spread evenly over the split, with their best guesses."""
    from classification.pictures import Example

    names = images.class_names
    chosen = np.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).round().astype(int)
    return [
        Example(
            images.read(index),
            names[images.labels[index]],
            [names[guess] for guess in guesses.classes[index, :EXAMPLE_GUESSES]],
            guesses.probabilities[index, :EXAMPLE_GUESSES].tolist(),
        )
        for index in chosen
    ]
