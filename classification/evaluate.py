"""Score a classifier: top-1 and top-5 accuracy, top-1 accuracy by class, and a confusion matrix.

python -m classification.evaluate experiments/experiment_3
python -m classification.evaluate torchvision_swin_t /datasets/imagenet
python -m classification.evaluate configs/SwinB_clf_384.yaml model.weights=microsoft_swin_b_384 /datasets/imagenet

The images may cover only some of the classes: class folders are matched to the classifier's outputs by name.
evaluation.json and evaluation_confusion.png are written to --output. By default, an experiment that is scored
without DATA gets these files in its folder. In all other cases, the scores are only printed.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import CLASSIFIERS, positive
from engine.files import user_path
from engine.start import start

if TYPE_CHECKING:
    import torch

    from classification.classifier import Classifier
    from data import LabelledImages

MAX_PRINTED_CLASSES = 50  # the classes with the lowest accuracy are printed


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m classification.evaluate",
        description="Score a classifier: top-1 and top-5 accuracy, and top-1 accuracy by class.",
        epilog="example: python -m classification.evaluate torchvision_swin_t /datasets/imagenet",
    )
    parser.add_argument("classifier", metavar="EXPERIMENT|CONFIG|WEIGHTS", help=CLASSIFIERS)
    parser.add_argument(
        "rest", nargs="*", metavar="DATA|section.field=value",
        help="DATA: folder with one subfolder per class, or data set with a val/ folder (default: the config's data)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=64, help="images per batch and process (default: 64)")
    parser.add_argument(
        "--workers", type=int, choices=range(257), default=min(4, os.cpu_count() or 1), metavar="N",
        help="data-loading workers per process (default: up to 4)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="output folder (default: the experiment; with DATA, only print)")
    arguments = parser.parse_intermixed_args(words)
    arguments.overrides = [word for word in arguments.rest if "=" in word]
    data = [word for word in arguments.rest if "=" not in word]
    if len(data) > 1:
        parser.error(f"{data[1]}: expected only one DATA folder, but {data[0]} is given as well")
    arguments.data = user_path(data[0], "DATA") if data else None
    return arguments


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Score a classifier, print the scores and write evaluation.json."""
    from classification.classifier import load_classifier
    from classification.task import compute_scores, predict_all
    from data import eval_loader
    from engine.compute.precision import inference_precision
    from engine.files import write_text
    from engine.logbook import logger
    from engine.terminal import printable
    from records.experiment import format_score

    classifier = load_classifier(arguments.classifier, arguments.overrides)
    images = read_images(arguments.data, classifier)
    outputs = classifier.output_indices(images.class_ids)
    # Renumber the labels by the classifier's outputs, because the images may cover only some of its classes.
    images = replace(
        images, labels=outputs[images.labels], class_ids=classifier.class_ids, class_names=classifier.class_names
    )
    logger.info(
        "scoring %s on %d images in %s; they cover %d of the classifier's %d classes",
        classifier.path, len(images), images.place, len(outputs), len(classifier.class_ids),
    )  # fmt: skip
    loader = eval_loader(images, classifier.transform, arguments.batch_size, arguments.workers, device)
    precision = inference_precision(classifier.precision, device)
    predictions = predict_all(classifier.model.to(device), loader, device, precision, classifier.channels_last)
    if predictions is None:
        return
    scores = compute_scores(predictions, images.labels, len(images.class_ids))
    by_class = images.mean_by_class("top1", predictions.classes[:, 0] == images.labels).items()
    top1 = {name: row for name, row in by_class if row["images"]}
    record = {
        "weights": str(classifier.path),
        "images": len(images),
        "images_sha256": images.digest,
        "input_size": classifier.input_size,
        "resize_size": classifier.resize_size,
        "precision": precision,
        "scores": scores,
        "per_class": top1,
    }
    print(f"top-1 by class, lowest first ({len(top1)} classes):")
    for name in sorted(top1, key=lambda name: top1[name]["top1"])[:MAX_PRINTED_CLASSES]:
        print(f"{format_score(top1[name]['top1'])}  {printable(name)} ({top1[name]['images']} images)")
    print("  ".join(f"{name} {format_score(value)}" for name, value in scores.items()))
    folder = arguments.output or (None if arguments.data else classifier.experiment)
    if folder is None:
        return
    from classification.pictures import draw_confusion  # imports matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    picture = folder / "evaluation_confusion.png"
    draw_confusion(picture, images.labels, predictions.classes[:, 0], images.class_names)
    print(f"written to {folder / 'evaluation.json'}; confusion matrix: {picture}")


def read_images(folder: Path | None, classifier: "Classifier") -> "LabelledImages":
    """Return the images in `folder`, or the validation images of the classifier's config if `folder` is None.

    Raises DatasetError if the images are missing, ConfigError if `folder` is None and the classifier has no config."""
    from classification.data import DataConfig, read_folders, read_split
    from data import FORMATS
    from engine.strict_yaml import ConfigError

    if folder is None:
        if classifier.data is None:
            raise ConfigError(f"{classifier.path}: no config with a data set; add DATA, a folder of images to score")
        return read_split(classifier.data, "val")
    for name, (subfolder, *_) in FORMATS.items():
        if (folder / subfolder).is_dir():
            return read_split(DataConfig(root=str(folder), format=name), "val")
    return read_folders(folder / "val" if (folder / "val").is_dir() else folder)


if __name__ == "__main__":
    start(parse_arguments, main)
