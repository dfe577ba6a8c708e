"""Overfit the full-size detectors on 16 real photographs, to check that they can learn at all.

    python -m benchmarks.overfit /path/to/coco80

Trains from random weights, without augmentation, on 16 images with at most eight objects each, and evaluates on the
same images. Needs a folder in COCO format with images/train and annotations/instances_train.json.
"""

import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.comparison import Page, Row, run_benchmark
from detection.coco.annotations import DataConfig, SplitConfig, read_split
from detection.coco.evaluation import as_dicts, coco_scores
from detection.coco.transforms import AugmentConfig
from detection.network.ssd import ModelConfig
from detection.task import DetectionConfig, DetectionTask
from engine.optim import OptimConfig
from training import TrainConfig, fit

IMAGES, MAX_OBJECTS, EPOCHS = 16, 8, 75
TARGETS = {"mAP": 0.6, "AP50": 0.85, "minutes": 5}  # minutes on two CPU cores
AUGMENT = AugmentConfig(photometric=False, zoom_out=1.0, crop_min_scale=1.0, horizontal_flip=0.0)
BACKBONES = {  # name: (input size, peak learning rate, channels_last)
    "ResNet50Backbone_B": (192, 5e-4, True),
    "SwinTBackbone_B": (224, 3e-4, False),
}


def write_subset(root: Path, target: Path) -> None:
    """Write an annotation file of the first IMAGES images that have one to MAX_OBJECTS objects and no crowd."""
    content = json.loads((root / "annotations/instances_train.json").read_text())
    objects: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    suitable = {
        image_id
        for image_id, annotations in objects.items()
        if 1 <= len(annotations) <= MAX_OBJECTS and not any(annotation.get("iscrowd") for annotation in annotations)
    }
    content["images"] = [image for image in content["images"] if image["id"] in suitable][:IMAGES]
    content["annotations"] = [annotation for image in content["images"] for annotation in objects[image["id"]]]
    target.write_text(json.dumps(content))


def overfit(backbone: str, root: Path, annotations: Path, device: torch.device) -> dict:
    """Train a detector with this backbone on the subset. Return its scores, and the training time in minutes."""
    side, learning_rate, channels_last = BACKBONES[backbone]
    split = SplitConfig(images="images/train", annotations=str(annotations))
    config = DetectionConfig(
        data=DataConfig(root=str(root), train=split, val=split, workers=0, cache_images=True),
        model=ModelConfig(backbone=backbone, input_size=side, drop_path_rate=0.0),
        augment=AUGMENT,
        optim=OptimConfig(
            optimizer="adamw", learning_rate=learning_rate, reference_batch_size=8, weight_decay=0.0,
            warmup_epochs=5, schedule="cosine",
        ),
        train=TrainConfig(epochs=EPOCHS, batch_size=8, channels_last=channels_last, eval_every_epochs=EPOCHS),
    )  # fmt: skip
    coco = read_split(config.data, "train")
    task = DetectionTask(config, coco, coco)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as experiment:
        _, evaluation = fit(task, Path(experiment), device, resume=False)
    minutes = (time.perf_counter() - started) / 60
    return {"minutes": minutes, **coco_scores(task.truth, as_dicts(evaluation.predictions))}


def measure(device: torch.device, root: Path) -> Page:
    """Overfit every backbone and compare scores and time with the targets."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        annotations = Path(work) / "subset.json"
        write_subset(root, annotations)
        for backbone in BACKBONES:
            results = overfit(backbone, root.resolve(), annotations, device)
            for name, target in TARGETS.items():
                rows.append(Row(f"{backbone}, {name}", "target", target, results[name], name, 1.0))
    text = f"""# Overfitting {IMAGES} images of {root.name}

Random weights, no augmentation, AdamW; evaluated on the training images.

{{rows}}
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure, {"root": {"type": Path, "help": "data set in COCO format"}}, on_cpu=False)
