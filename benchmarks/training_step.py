"""A training step on the CPU: bf16 beside fp32.

    OMP_NUM_THREADS=1 python -m benchmarks.training_step

Whole steps of training.Trainer on one batch of drawn images. The bf16 step of the convnet has channels_last. Takes two
minutes.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.comparison import Page, Row, run_benchmark, turn_by_turn
from data import batch_to
from detection.coco.annotations import DataConfig, SplitConfig, read_split
from detection.coco.dataset import collate
from detection.network.ssd import ModelConfig
from detection.shapes import generate
from detection.task import DetectionConfig, DetectionTask
from engine import distributed
from engine.compute.placement import set_train_mode
from engine.optim import OptimConfig
from training import TrainConfig, Trainer

BACKBONES = ("ResNet50Backbone_B", "SwinTBackbone_B")
BATCH_SIZE, ROUNDS = 8, 3


def make_run(
    root: Path, device: torch.device, *, backbone: str, neck: str = "none", workers: int = 0, **train: object
) -> Trainer:
    """Return a run in training mode, on the images of root/images/train, by the recipe's optimizer.

    train: fields of TrainConfig; channels_last is on for a convnet in bf16. Its checkpoints, if any, go to the root."""
    is_convnet = backbone.startswith("ResNet")
    split = SplitConfig(images="images/train", annotations="annotations/instances_train.json")
    config = DetectionConfig(
        data=DataConfig(root=str(root), train=split, val=split, workers=workers),
        model=ModelConfig(backbone=backbone, neck=neck),
        optim=OptimConfig(optimizer="sgd" if is_convnet else "adamw", learning_rate=1e-5),  # nothing is to be learned
        train=TrainConfig(epochs=1, channels_last=is_convnet and train["precision"] == "bf16", **train),
    )
    coco = read_split(config.data, "train")
    run = Trainer(DetectionTask(config, coco, coco), root, device)
    set_train_mode(run.parallel_model, config.train.batch_norm)
    return run


def first_batch(run: Trainer) -> dict[str, Tensor]:
    """Return the first images of its data set that are this process's, collated, on its device."""
    first, size = distributed.rank() * run.config.batch_size, run.config.batch_size
    return batch_to(collate([run.task.train_set[0, index] for index in range(first, first + size)]), run.device)


def measure(device: torch.device) -> Page:
    """Compare."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        generate(name, num_train=BATCH_SIZE, num_val=1, image_size=300)
        for backbone in BACKBONES:
            steps = []
            for precision in ("bf16", "fp32"):
                run = make_run(Path(name), device, backbone=backbone, batch_size=BATCH_SIZE, precision=precision)
                batch = first_batch(run)
                steps.append(lambda run=run, batch=batch: run.train_step([batch]))
                steps[-1]()
            bf16, fp32 = turn_by_turn(steps, ROUNDS)
            rows.append(Row(f"{backbone}, bf16", "own fp32", fp32 * 1e3, bf16 * 1e3, "ms", 1.9))
    text = f"""# Training step on a CPU

Batches of {BATCH_SIZE}, each backbone at its reference size; process time, the least of {ROUNDS} rounds.

{{rows}}
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure)
