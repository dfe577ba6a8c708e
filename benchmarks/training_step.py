"""Training step on the CPU: bf16 compared with fp32.

    OMP_NUM_THREADS=1 python -m benchmarks.training_step

Times complete steps of training.Trainer on one batch of synthetic images. In bf16, the ResNet uses channels_last. Takes
two minutes.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.comparison import Page, Row, run_benchmark, time_alternating
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
    """Return a Trainer on the images in root/images/train, in training mode. A ResNet uses SGD; a Swin uses AdamW.

    train: fields of TrainConfig. A ResNet in bf16 uses channels_last. Checkpoints, if any, are written to `root`."""
    is_convnet = backbone.startswith("ResNet")
    split = SplitConfig(images="images/train", annotations="annotations/instances_train.json")
    config = DetectionConfig(
        data=DataConfig(root=str(root), train=split, val=split, workers=workers),
        model=ModelConfig(backbone=backbone, neck=neck),
        optim=OptimConfig(optimizer="sgd" if is_convnet else "adamw", learning_rate=1e-5),  # the weights hardly change
        train=TrainConfig(epochs=1, channels_last=is_convnet and train["precision"] == "bf16", **train),
    )
    coco = read_split(config.data, "train")
    run = Trainer(DetectionTask(config, coco, coco), root, device)
    set_train_mode(run.parallel_model, config.train.batch_norm)
    return run


def first_batch(run: Trainer) -> dict[str, Tensor]:
    """Return the first batch of this rank, on the rank's device. Each rank gets a different part of the data set."""
    first, size = distributed.rank() * run.config.batch_size, run.config.batch_size
    return batch_to(collate([run.task.train_set[0, index] for index in range(first, first + size)]), run.device)


def measure(device: torch.device) -> Page:
    """Time steps in bf16 and fp32 for every backbone."""
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
            bf16, fp32 = time_alternating(steps, ROUNDS)
            rows.append(Row(f"{backbone}, bf16", "own fp32", fp32 * 1e3, bf16 * 1e3, "ms", 1.9))
    text = f"""# Training step on a CPU

Batches of {BATCH_SIZE}, each backbone at its reference input size; process time, the minimum of {ROUNDS} rounds.

{{rows}}
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure)
