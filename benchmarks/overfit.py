"""Can the full-size detectors learn 16 real photographs by heart? The first question to ask of a detector.

    python benchmarks/overfit.py /path/to/coco80

Trains ResNet50Backbone_B and SwinTBackbone_B from random weights, without augmentation, on 16 images with at most
eight objects each, and scores them on those same images by COCO mAP. An error in the boxes, the matching, the
loss, the decoding or the scoring shows here within minutes. Needs a folder in COCO's format with images/train and
annotations/instances_train.json. Writes benchmarks/overfit.md; the runs stay in a temporary folder.
"""

import argparse
import json
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from detection.coco.annotations import DataConfig, SplitConfig, read_coco, read_split
from detection.coco.evaluation import as_dicts, coco_scores
from detection.coco.transforms import AugmentConfig
from detection.network.ssd import ModelConfig
from detection.task import DetectionConfig, DetectionTask
from engine.command import RunError, run_command
from engine.logbook import start_logging
from engine.optim import OptimConfig
from records.experiment import describe_environment
from training import TrainConfig, fit

IMAGES, MOST_OBJECTS = 16, 8
LEAST_MAP, LEAST_AP50, MOST_MINUTES = 0.6, 0.85, 5.0  # on two CPU cores; asked of each row
AUGMENT = AugmentConfig(photometric=False, zoom_out=1.0, crop_min_scale=1.0, horizontal_flip=0.0, vertical_flip=0.0)
ROWS = {  # backbone: input side, peak learning rate, epochs, channels_last
    "ResNet50Backbone_B": (192, 5e-4, 75, True),
    "SwinTBackbone_B": (224, 3e-4, 75, False),
}


def write_subset(root: Path, target: Path) -> None:
    """The first images with one to eight objects and no crowd, as a data set of their own."""
    content = json.loads((root / "annotations/instances_train.json").read_text())
    objects: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    chosen = [
        image
        for image in content["images"]
        if 1 <= len(objects[image["id"]]) <= MOST_OBJECTS
        and not any(annotation.get("iscrowd") for annotation in objects[image["id"]])
    ][:IMAGES]
    content["images"] = chosen
    content["annotations"] = [annotation for image in chosen for annotation in objects[image["id"]]]
    target.write_text(json.dumps(content))


def overfit(backbone: str, root: Path, annotations: Path, work: Path, device: torch.device) -> dict:
    """Train one backbone on the subset; returns its scores and times."""
    side, learning_rate, epochs, channels_last = ROWS[backbone]
    split = SplitConfig(images="images/train", annotations=str(annotations))
    config = DetectionConfig(
        data=DataConfig(root=str(root), train=split, val=split, workers=0, cache_images=True),
        model=ModelConfig(backbone=backbone, input_size=side, drop_path_rate=0.0),
        augment=AUGMENT,
        optim=OptimConfig(
            optimizer="adamw", learning_rate=learning_rate, reference_batch_size=8, weight_decay=0.0,
            warmup_epochs=5, schedule="cosine",
        ),
        train=TrainConfig(epochs=epochs, batch_size=8, channels_last=channels_last, eval_every_epochs=epochs),
    )  # fmt: skip
    coco = read_split(config.data, "train")
    task = DetectionTask(config, coco, coco)
    experiment = work / backbone
    experiment.mkdir()
    started = time.perf_counter()
    _, evaluation = fit(task, experiment, device, resume=False)
    seconds = time.perf_counter() - started
    return {
        "side": side,
        "epochs": epochs,
        "seconds": seconds,
        **coco_scores(task.truth, as_dicts(evaluation.predictions)),
    }


def main(device: torch.device) -> None:
    """Overfit every row and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog="example: python benchmarks/overfit.py datasets/coco80"
    )
    parser.add_argument("root", type=Path, help="data set in COCO's format")
    arguments = parser.parse_args()
    start_logging(None, verbose=True)
    results = {}
    with tempfile.TemporaryDirectory() as work:
        annotations = Path(work) / "subset.json"
        read_coco(arguments.root / "annotations/instances_train.json", arguments.root / "images/train")  # checks it
        write_subset(arguments.root, annotations)
        for backbone in ROWS:
            results[backbone] = overfit(backbone, arguments.root.resolve(), annotations, Path(work), device)
    environment = describe_environment([platform.node()], device)
    machine = environment["cpu"] if environment["device"] == "cpu" else environment["device"]
    lines = [
        f"# Overfitting {IMAGES} images of {arguments.root.name}",
        "",
        f"`python benchmarks/overfit.py {arguments.root}`, {date.today()}, commit {environment['commit']}, "
        f"{machine} with {environment['cpu_threads']} threads, torch {environment['versions']['torch']}.",
        f"Random weights, no augmentation, AdamW, bf16; scored on the training images. Asked: mAP {LEAST_MAP}, "
        f"AP50 {LEAST_AP50}, {MOST_MINUTES:g} minutes.",
        "",
        "| backbone | input | epochs | minutes | mAP | AP50 |",
        "|---|---|---|---|---|---|",
    ]
    for backbone, row in results.items():
        lines.append(
            f"| {backbone} | {row['side']} | {row['epochs']} | {row['seconds'] / 60:.1f} "
            f"| {row['mAP']:.3f} | {row['AP50']:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text)
    print(text)
    for backbone, row in results.items():
        if row["mAP"] < LEAST_MAP or row["AP50"] < LEAST_AP50 or row["seconds"] > 60 * MOST_MINUTES:
            raise RunError(f"{backbone}: asked are mAP {LEAST_MAP}, AP50 {LEAST_AP50} within {MOST_MINUTES:g} minutes")


if __name__ == "__main__":
    run_command(main)
