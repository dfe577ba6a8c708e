"""Score a classifier: top-1, top-5, top-1 of every class, and which classes it takes for which.

python train_clf_imagenet.py evaluate experiments/experiment_3
python train_clf_imagenet.py evaluate torchvision_swin_t /datasets/imagenet
python train_clf_imagenet.py evaluate configs/SwinB_clf_384.yaml model.weights=microsoft_swin_b_384 /datasets/imagenet

The images may be of some of the classes only: folders are found among the classifier's outputs by their names.
evaluation.json and evaluation_confusion.png land in the experiment that is scored on its own data, or in --output.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from classification.classifier import Classifier, load_classifier
from classification.data import DataConfig, read_folders, read_split
from classification.record import per_class
from classification.task import guess_all, scores_of
from data import CIFAR10_FOLDER, MNIST_FOLDER, LabelledImages, eval_loader
from engine.compute.precision import inference_precision
from engine.files import write_text
from engine.logbook import logger
from engine.strict_yaml import ConfigError
from engine.terminal import printable
from records.experiment import shown_score

LISTED_CLASSES = 50  # printed; of more of them, as many of the worst


def evaluate(arguments: argparse.Namespace, device: torch.device) -> None:
    """Score as the command line says, print the scores, keep evaluation.json."""
    classifier = load_classifier(arguments.classifier, arguments.overrides)
    images = find_images(arguments.data, classifier)
    outputs = classifier.outputs_of(images.class_ids)
    # From here on the classes are those of the classifier, of which the images may have some.
    images = replace(
        images, labels=outputs[images.labels], class_ids=classifier.class_ids, class_names=classifier.class_names
    )
    logger.info(
        "%s on %d images in %s, of %d of its %d classes",
        classifier.path, len(images), images.place, len(outputs), len(classifier.class_ids),
    )  # fmt: skip
    loader = eval_loader(images, classifier.transform, arguments.batch_size, arguments.workers, device)
    model = classifier.model.to(device)
    precision = inference_precision(classifier.precision, device)
    guesses = guess_all(model, loader, device, precision, classifier.channels_last)
    if guesses is None:
        return
    scores = scores_of(guesses, images.labels, len(images.class_ids))
    by_class = {name: found for name, found in per_class(guesses, images).items() if found["images"]}
    record = {
        "weights": str(classifier.path),
        "images": len(images),
        "images_sha256": images.digest,
        "input_size": classifier.input_size,
        "resize_size": classifier.resize_size,
        "precision": precision,
        "scores": scores,
        "per_class": by_class,
    }
    worst = sorted(by_class, key=lambda name: by_class[name]["top1"])[:LISTED_CLASSES]
    if len(by_class) > len(worst):
        print(f"the {len(worst)} worst of {len(by_class)} classes:")
    for name in worst:
        print(f"{shown_score(by_class[name]['top1'])}  {printable(name)} ({by_class[name]['images']} images)")
    print("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
    if folder := arguments.output or (None if arguments.data else classifier.experiment):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "evaluation.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        from classification.pictures import draw_confusion  # imports matplotlib

        picture = folder / "evaluation_confusion.png"
        draw_confusion(picture, images.labels, guesses.classes[:, 0], images.class_names)
        print(f"written to {folder / 'evaluation.json'}; confusions: {picture}")
    else:
        print("not written down: --output FOLDER keeps evaluation.json and a picture of the confusions")


def find_images(folder: Path | None, classifier: Classifier) -> LabelledImages:
    """The images to score: those in a folder, or else the validation images of the classifier's config.

    Raises DatasetError if they are not there, ConfigError if there is neither."""
    if folder is None:
        if classifier.data is None:
            raise ConfigError(f"{classifier.path}: has no data of its own; name a folder of images to score, too")
        return read_split(classifier.data, "val")
    if (folder / CIFAR10_FOLDER).is_dir():
        return read_split(DataConfig(root=str(folder), format="cifar10"), "val")
    if (folder / MNIST_FOLDER).is_dir():
        return read_split(DataConfig(root=str(folder), format="mnist"), "val")
    return read_folders(folder / "val" if (folder / "val").is_dir() else folder)
