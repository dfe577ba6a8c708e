"""Can the full-size detectors learn 16 real photographs by heart? The first question to ask of a detector.

    python -m benchmarks.overfit /path/to/coco80

Trains ResNet50Backbone_B and SwinTBackbone_B from random weights, without augmentation, on 16 images with at most
eight objects each, and scores them on those same images by COCO mAP. An error in the boxes, the matching, the
loss, the decoding or the scoring shows here within minutes. Needs a folder in COCO's format with images/train and
annotations/instances_train.json. Writes benchmarks/overfit.md; the runs stay in a temporary folder.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.comparison import write_page
from detection.coco.annotations import DataConfig, SplitConfig, read_coco, read_split
from detection.coco.evaluation import as_dicts, coco_scores
from detection.coco.transforms import AugmentConfig
from detection.network.ssd import ModelConfig
from detection.task import DetectionConfig, DetectionTask
from engine.command import RunError, run_command
from engine.logbook import start_logging
from engine.optim import OptimConfig
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


def overfit(backbone: str, root: Path, annotations: Path, device: torch.device) -> dict:
    """Train one backbone on the subset; return its scores and the minutes it took."""
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
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as experiment:
        _, evaluation = fit(task, Path(experiment), device, resume=False)
    minutes = (time.perf_counter() - started) / 60
    return {"minutes": minutes, **coco_scores(task.truth, as_dicts(evaluation.predictions))}


def main(device: torch.device) -> None:
    """Overfit every row, and write the page. Raises RunError if a score is below what is asked."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog="example: python -m benchmarks.overfit datasets/coco80"
    )
    parser.add_argument("root", type=Path, help="data set in COCO's format")
    root = parser.parse_args().root
    start_logging(None, verbose=True)
    rows, short = [], []
    with tempfile.TemporaryDirectory() as work:
        annotations = Path(work) / "subset.json"
        read_coco(root / "annotations/instances_train.json", root / "images/train")  # checks it
        write_subset(root, annotations)
        for backbone in ROWS:
            found = overfit(backbone, root.resolve(), annotations, device)
            rows.append(f"| {backbone} | {found['minutes']:.1f} | {found['mAP']:.3f} | {found['AP50']:.3f} |")
            if found["mAP"] < LEAST_MAP or found["AP50"] < LEAST_AP50 or found["minutes"] > MOST_MINUTES:
                short.append(backbone)
    text = f"""# Overfitting {IMAGES} images of {root.name}

Random weights, no augmentation, AdamW; scored on the training images. Asked: mAP {LEAST_MAP}, AP50 {LEAST_AP50}, \
{MOST_MINUTES:g} minutes.

| backbone | minutes | mAP | AP50 |
|---|---|---|---|
{chr(10).join(rows)}
"""
    write_page(__file__, text, [], device)
    if short:
        raise RunError(f"not as asked: {', '.join(short)}; see {Path(__file__).with_suffix('.md')}")


if __name__ == "__main__":
    run_command(main)
