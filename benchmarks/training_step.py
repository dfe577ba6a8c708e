"""A training step on the CPU: bf16 beside fp32, ours beside torchvision's SSD around the same trunk, and beside timm.

    python -m benchmarks.training_step

Whole steps as training.Run takes them, on one batch of drawn images in memory: forward, losses, backward, clipping,
update. The bf16 step of the convnet has channels_last. torchvision's SSD has our trunk and extra levels as its
backbone, head, matching and losses of its own, and the same optimizer and clipping; it and ours beside it are in fp32.
timm's Swin-T is the classifier, forward and backward, beside model.py's with the same weights.

Asked: bf16 1.9 times as fast as own fp32. Takes five minutes.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.ssd import SSDHead

from benchmarks.comparison import Row, turn_by_turn, write_page
from data import IMAGENET_MEAN, IMAGENET_STD
from detection.annotations import DataConfig, SplitConfig, read_split
from detection.backbones import build_backbone
from detection.dataset import collate
from detection.sample import generate
from detection.ssd import ModelConfig
from detection.task import DetectionConfig, DetectionTask
from engine.command import RunError, run_command
from engine.optim import OptimConfig
from model import SWIN_VARIANTS, SwinTransformer, load_swin_weights
from training import Run, TrainConfig

BATCH_SIZE, ROUNDS = 8, 3
OPTIM = OptimConfig(optimizer="sgd", learning_rate=1e-5)
SIDES = {"ResNet50Backbone_B": 300, "SwinTBackbone_B": 336}
MOST_DIFFERENCE = 1e-4  # of timm's logits


def our_step(root: Path, backbone: str, precision: str) -> Callable[[], object]:
    """A step on the same batch again and again."""
    split = SplitConfig(images="images/train", annotations="annotations/instances_train.json")
    config = DetectionConfig(
        data=DataConfig(root=str(root), train=split, val=split, workers=0),
        model=ModelConfig(backbone=backbone),
        optim=OPTIM,
        train=TrainConfig(
            epochs=1, batch_size=BATCH_SIZE, precision=precision,
            channels_last=precision == "bf16" and backbone.startswith("ResNet"),
        ),
    )  # fmt: skip
    coco = read_split(config.data, "train")
    task = DetectionTask(config, coco, coco)
    run = Run(task, config.train, config.optim, root, torch.device("cpu"))
    batch = collate([task.train_set[0, index] for index in range(BATCH_SIZE)])
    return lambda: run.train_step([batch])


def torchvision_step(root: Path, backbone: str) -> Callable[[], object]:
    """torchvision's, on the images of the same files."""
    trunk = build_backbone(backbone)
    boxes = [4, 6, 6, 6, 4, 4]

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk

        def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
            return OrderedDict((str(level), level_map) for level, level_map in enumerate(self.trunk(images)))

    generator = DefaultBoxGenerator([[2], [2, 3], [2, 3], [2, 3], [2], [2]])
    side = SIDES[backbone]
    model = TorchvisionSSD(
        Levels(), generator, (side, side), 9, SSDHead(trunk.out_channels, boxes, 9),
        image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD,
    ).train()  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=5e-4, fused=True)
    split = SplitConfig(images="images/train", annotations="annotations/instances_train.json")
    coco = read_split(DataConfig(root=str(root), train=split, val=split), "train")
    images = torch.rand(BATCH_SIZE, 3, side, side).unbind()
    targets = []
    for index in range(BATCH_SIZE):
        boxes_xyxy, labels, is_crowd = coco.objects(index)
        scaled = torch.from_numpy(boxes_xyxy[~is_crowd]) * side / max(coco.images[index].width, 1)
        targets.append({"boxes": scaled, "labels": torch.from_numpy(labels[~is_crowd])})

    def step() -> None:
        losses = model(list(images), targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def swin_passes() -> list[Callable[[], object]]:
    """Forward and backward of timm's classifier and ours with its weights. Raises RunError if their logits differ."""
    theirs = timm.create_model("swin_tiny_patch4_window7_224")
    ours = SwinTransformer(**SWIN_VARIANTS["swin_t"])
    load_swin_weights(ours, theirs.state_dict())
    images = torch.rand(BATCH_SIZE, 3, 224, 224)
    with torch.no_grad():
        difference = float((theirs.eval()(images) - ours.eval()(images)).abs().max())
    if difference > MOST_DIFFERENCE:
        raise RunError(f"the logits differ from timm's by up to {difference}")
    return [lambda model=model: model(images).sum().backward() for model in (theirs, ours)]


def main(device: torch.device) -> None:
    """Measure, and write the page."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        generate(root, num_train=BATCH_SIZE, num_val=1, image_size=300)
        for backbone in SIDES:
            quick, plain, peer = (
                our_step(root, backbone, "bf16"), our_step(root, backbone, "fp32"), torchvision_step(root, backbone)
            )  # fmt: skip
            bf16, fp32, torchvision = turn_by_turn([quick, plain, peer], ROUNDS)
            rows.append(Row(f"{backbone}, bf16", "own fp32", fp32 * 1e3, bf16 * 1e3, "ms", 1.9))
            rows.append(Row(f"{backbone}, fp32", "torchvision's SSD", torchvision * 1e3, fp32 * 1e3, "ms"))
    timm_pass, our_pass = turn_by_turn(swin_passes(), ROUNDS)
    rows.append(Row("Swin-T at 224, forward and backward", "timm", timm_pass * 1e3, our_pass * 1e3, "ms"))
    write_page(
        __file__,
        f"""# Training step on a CPU

Batches of {BATCH_SIZE}, ResNet-50 at {SIDES["ResNet50Backbone_B"]} pixels, Swin-T at {SIDES["SwinTBackbone_B"]}; \
process time, the least of {ROUNDS} rounds.

{{rows}}
""",
        rows,
        device,
    )


if __name__ == "__main__":
    run_command(main)
