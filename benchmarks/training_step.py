"""A training step on the CPU: bf16 beside fp32, ours beside torchvision's SSD around the same trunk, and beside timm.

    OMP_NUM_THREADS=1 python -m benchmarks.training_step

Whole steps as training.Trainer takes them, on one batch of drawn images in memory: forward, losses, backward, clipping,
update. The bf16 step of the convnet has channels_last. torchvision's SSD has our trunk and extra levels as its
backbone, head, matching and losses of its own, and the same optimizer, clipping, images and boxes; it and ours beside
it are in fp32. Colours, which its loaders distort and our step does, are left out of both. timm's Swin-T is the
classifier, forward and backward, beside model.py's with the same weights.

Asked: bf16 1.9 times as fast as own fp32. Takes three minutes.
"""

import argparse
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.ssd import SSDHead

from benchmarks.comparison import Row, turn_by_turn, write_page
from data import IMAGENET_MEAN, IMAGENET_STD, batch_to
from detection.coco.annotations import DataConfig, SplitConfig, read_split
from detection.coco.dataset import collate
from detection.network.anchors import ASPECT_RATIOS, BOXES_PER_CELL
from detection.network.backbones import BACKBONES, build_backbone
from detection.network.ssd import ModelConfig
from detection.shapes import generate
from detection.task import DetectionConfig, DetectionTask
from engine import distributed
from engine.command import RunError, run_command
from engine.compute.placement import set_train_mode
from engine.optim import OptimConfig, build_optimizer
from model import SWIN_VARIANTS, SwinTransformer, load_swin_weights
from training import TrainConfig, Trainer

BACKBONE_NAMES = ("ResNet50Backbone_B", "SwinTBackbone_B")
BATCH_SIZE, ROUNDS = 8, 3
LEARNING_RATE = 1e-5  # nothing is to be learned from the same batch again and again
MOST_DIFFERENCE = 1e-4  # of timm's logits


def make_run(
    root: Path, device: torch.device, *, backbone: str, neck: str = "none", workers: int = 0, **train: object
) -> Trainer:
    """A run in training mode, on the images of root/images/train, by the recipe's optimizer.

    train: fields of TrainConfig; channels_last is on for a convnet in bf16. Its checkpoints, if any, go to the root."""
    is_convnet = backbone.startswith("ResNet")
    split = SplitConfig(images="images/train", annotations="annotations/instances_train.json")
    config = DetectionConfig(
        data=DataConfig(root=str(root), train=split, val=split, workers=workers),
        model=ModelConfig(backbone=backbone, neck=neck),
        optim=OptimConfig(optimizer="sgd" if is_convnet else "adamw", learning_rate=LEARNING_RATE),
        train=TrainConfig(epochs=1, channels_last=is_convnet and train["precision"] == "bf16", **train),
    )
    coco = read_split(config.data, "train")
    run = Trainer(DetectionTask(config, coco, coco), root, device)
    set_train_mode(run.parallel_model, config.train.batch_norm)
    return run


def first_batch(run: Trainer) -> dict[str, Tensor]:
    """The first images of its data set that are this process's, as `collate` puts them together, on its device."""
    first, size = distributed.rank() * run.config.batch_size, run.config.batch_size
    return batch_to(collate([run.task.train_set[0, index] for index in range(first, first + size)]), run.device)


def torchvision_ssd(backbone: str, num_classes: int) -> TorchvisionSSD:
    """torchvision's detector around our trunk and extra levels, for images of the backbone's reference size."""
    trunk = build_backbone(backbone)

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk

        def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
            return OrderedDict((str(level), level_map) for level, level_map in enumerate(self.trunk(images)))

    side = BACKBONES[backbone].input_size
    return TorchvisionSSD(
        Levels(), DefaultBoxGenerator([list(ratios) for ratios in ASPECT_RATIOS]), (side, side), num_classes + 1,
        head=SSDHead(trunk.out_channels, list(BOXES_PER_CELL), num_classes + 1),
        image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD,
    )  # fmt: skip


def torchvision_step(
    model: TorchvisionSSD, batch: dict[str, Tensor], optim: OptimConfig, device: torch.device
) -> Callable[[], object]:
    """A step of torchvision's detector in fp32, on a batch as `first_batch` makes it."""
    model.to(device).train()
    images = list((batch["images"] / 255).unbind())
    optimizer = build_optimizer(model, optim, len(images))
    side = images[0].shape[-1]
    pairs = zip(batch["boxes_xyxy"], batch["labels"], strict=True)
    targets = [{"boxes": boxes[labels > 0] * side, "labels": labels[labels > 0]} for boxes, labels in pairs]

    def step() -> None:
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()

    return step


def swin_passes() -> list[Callable[[], object]]:
    """Forward and backward of timm's classifier and ours with its weights. Raises RunError if their logits differ."""
    import timm  # here, for other benchmarks share this file where it is not installed

    theirs = timm.create_model("swin_tiny_patch4_window7_224")
    ours = SwinTransformer(**SWIN_VARIANTS["swin_t"])
    load_swin_weights(ours, theirs.state_dict())
    images = torch.rand(BATCH_SIZE, 3, 224, 224)
    with torch.no_grad():
        difference = float((theirs.eval()(images) - ours.eval()(images)).abs().max())
    if difference > MOST_DIFFERENCE:
        raise RunError(f"the logits differ from timm's by up to {difference}")
    return [lambda model=model: model(images).sum().backward() for model in (theirs, ours)]


def main(_: torch.device) -> None:
    """Measure, and write the page. Raises RunError if our Swin's logits differ from timm's."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()  # --help measures nothing
    device = torch.device("cpu")  # whatever else there is
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        generate(root, num_train=BATCH_SIZE, num_val=1, image_size=300)
        for backbone in BACKBONE_NAMES:
            runs = [
                make_run(root, device, backbone=backbone, batch_size=BATCH_SIZE, precision=precision)
                for precision in ("bf16", "fp32")
            ]
            batch = first_batch(runs[0])
            del batch["colours"]
            steps = [lambda run=run, batch=batch: run.train_step([batch]) for run in runs]
            model = torchvision_ssd(backbone, runs[0].task.model.num_classes)
            steps.append(torchvision_step(model, batch, runs[0].task.config.optim, device))
            for step in steps:
                step()
            bf16, fp32, torchvision = turn_by_turn(steps, ROUNDS)
            rows.append(Row(f"{backbone}, bf16", "own fp32", fp32 * 1e3, bf16 * 1e3, "ms", 1.9))
            rows.append(Row(f"{backbone}, fp32", "torchvision's SSD", torchvision * 1e3, fp32 * 1e3, "ms"))
    timm_pass, our_pass = turn_by_turn(swin_passes(), ROUNDS)
    rows.append(Row("Swin-T at 224, forward and backward", "timm", timm_pass * 1e3, our_pass * 1e3, "ms"))
    write_page(
        __file__,
        f"""# Training step on a CPU

Batches of {BATCH_SIZE}, each backbone at its reference size; process time, the least of {ROUNDS} rounds.

{{rows}}
""",
        rows,
        device,
    )


if __name__ == "__main__":
    run_command(main)
