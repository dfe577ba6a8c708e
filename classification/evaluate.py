"""Score a classifier: top-1, top-5, top-1 of every class, and which classes it takes for which.

python -m classification.evaluate experiments/experiment_3
python -m classification.evaluate torchvision_swin_t /datasets/imagenet
python -m classification.evaluate configs/SwinB_clf_384.yaml model.weights=microsoft_swin_b_384 /datasets/imagenet

The images may be of some of the classes only: folders are found among the classifier's outputs by their names.
evaluation.json and evaluation_confusion.png are written to the experiment if it is scored on its own data, or to
--output.
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

LISTED_CLASSES = 50  # printed, worst first


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m classification.evaluate",
        description="Score a classifier with top-1 and top-5 accuracy, over all and by class.",
        epilog="example: python -m classification.evaluate torchvision_swin_t /datasets/imagenet",
    )
    parser.add_argument("classifier", metavar="EXPERIMENT|CONFIG|WEIGHTS", help=CLASSIFIERS)
    parser.add_argument(
        "rest", nargs="*", metavar="DATA|section.field=value",
        help="a folder of class folders, or with val/ of these in it (default: the config's); values of the config",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=64, help="images at once on each process (64)")
    parser.add_argument(
        "--workers", type=int, choices=range(257), default=min(4, os.cpu_count() or 1), metavar="N",
        help="loader processes of each process (default: up to 4)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder to write to (default: the experiment, for its own data)")
    arguments = parser.parse_intermixed_args(words)
    arguments.overrides = [word for word in arguments.rest if "=" in word]
    data = [word for word in arguments.rest if "=" not in word]
    if len(data) > 1:
        parser.error(f"{data[1]}: expected one folder of images, {data[0]} is given already")
    arguments.data = user_path(data[0], "DATA") if data else None
    return arguments


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Score as the command line says, print the scores, keep evaluation.json."""
    from classification.classifier import load_classifier
    from classification.task import guess_all, scores_of
    from data import eval_loader
    from engine.compute.precision import inference_precision
    from engine.files import write_text
    from engine.logbook import logger
    from engine.terminal import printable
    from records.experiment import shown_score

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
    precision = inference_precision(classifier.precision, device)
    guesses = guess_all(classifier.model.to(device), loader, device, precision, classifier.channels_last)
    if guesses is None:
        return
    scores = scores_of(guesses, images.labels, len(images.class_ids))
    by_class = images.mean_by_class("top1", guesses.classes[:, 0] == images.labels).items()
    top1 = {name: found for name, found in by_class if found["images"]}
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
    print(f"the worst of {len(top1)} classes:")
    for name in sorted(top1, key=lambda name: top1[name]["top1"])[:LISTED_CLASSES]:
        print(f"{shown_score(top1[name]['top1'])}  {printable(name)} ({top1[name]['images']} images)")
    print("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
    folder = arguments.output or (None if arguments.data else classifier.experiment)
    if folder is None:
        return
    from classification.pictures import draw_confusion  # imports matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    picture = folder / "evaluation_confusion.png"
    draw_confusion(picture, images.labels, guesses.classes[:, 0], images.class_names)
    print(f"written to {folder / 'evaluation.json'}; confusions: {picture}")


def find_images(folder: Path | None, classifier: "Classifier") -> "LabelledImages":
    """Return the images to score: those in a folder, or else the validation images of the classifier's config.

    Raises DatasetError if they are missing, ConfigError if there is neither."""
    from classification.data import DataConfig, read_folders, read_split
    from data import FORMATS
    from engine.strict_yaml import ConfigError

    if folder is None:
        if classifier.data is None:
            raise ConfigError(f"{classifier.path}: has no data of its own; name a folder of images to score, too")
        return read_split(classifier.data, "val")
    for name, (own, *_) in FORMATS.items():
        if (folder / own).is_dir():
            return read_split(DataConfig(root=str(folder), format=name), "val")
    return read_folders(folder / "val" if (folder / "val").is_dir() else folder)


if __name__ == "__main__":
    start(parse_arguments, main)
