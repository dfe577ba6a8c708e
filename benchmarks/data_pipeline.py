"""Images per second and core from JPEG files to batches to train on, beside torchvision's transforms.v2 on PIL images.

    python -m benchmarks.data_pipeline [/path/to/coco80]

The peer is SSD's recipe by torchvision. Ours is CocoDetection with the same chances, `collate`, and distort_colours on
the CPU or left to the device that trains; and the latter with images rewritten by `python -m detection.data shrink`.
Without a data set in COCO's format, 64 images are drawn. Takes a minute.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks.comparison import Page, Row, run_benchmark, turn_by_turn
from detection.coco.annotations import CocoFile, read_coco
from detection.coco.dataset import CocoDetection, collate
from detection.coco.transforms import MEAN_COLOUR, AugmentConfig, distort_colours, train_transform
from detection.prepare.shrink import shrink
from detection.shapes import generate

IMAGES, DRAWN, BATCH_SIZE, SIDE, SHORT_SIDE, ROUNDS = 192, 64, 32, 300, 400, 7
RECIPE = v2.Compose(
    [
        v2.RandomPhotometricDistort(),
        v2.RandomZoomOut(fill=MEAN_COLOUR.flatten().tolist()),
        v2.RandomIoUCrop(),
        v2.SanitizeBoundingBoxes(),
        v2.Resize((SIDE, SIDE)),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
    ]
)


def by_torchvision(coco: CocoFile, batches: list[list[int]]) -> None:
    """Make batches (B, 3, S, S) uint8, with the same crops in every round: the best round is the least disturbed."""
    torch.manual_seed(0)
    for indices in batches:
        images = []
        for index in indices:
            boxes_xyxy, labels, is_crowd = coco.objects(index)
            with Image.open(coco.file(index).path) as image:
                image = image.convert("RGB")
            boxes = tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes_xyxy[~is_crowd]), format="XYXY", canvas_size=image.size[::-1]
            )
            sample = RECIPE({"image": image, "boxes": boxes, "labels": torch.from_numpy(labels[~is_crowd])})
            images.append(sample["image"])
        torch.stack(images)


def by_us(dataset: CocoDetection, batches: list[list[int]], *, colour_here: bool) -> None:
    """Make the same batches as the project's loaders do."""
    for indices in batches:
        batch = collate(dataset.__getitems__([(0, index) for index in indices]))
        if colour_here:
            distort_colours(batch["images"], batch["colours"])


def measure(device: torch.device, root: Path | None) -> Page:
    """Compare on the images with objects."""
    with tempfile.TemporaryDirectory() as work:
        if root is None:
            root = Path(work) / "drawn"
            generate(root, num_train=DRAWN, num_val=1, image_size=554)
        shrink(root, Path(work) / "shrunk", SHORT_SIDE, workers=2)
        originals, copies = (
            CocoDetection(
                read_coco(folder / "annotations/instances_train.json", folder / "images/train"),
                train_transform(AugmentConfig(), SIDE),
            )
            for folder in (root.resolve(), Path(work) / "shrunk")
        )
        coco = originals.coco
        indices = [index for index in range(len(coco.images)) if not coco.objects(index)[2].all()][:IMAGES]
        batches = [indices[start : start + BATCH_SIZE] for start in range(0, len(indices), BATCH_SIZE)]
        contenders = [
            partial(by_torchvision, coco, batches),
            partial(by_us, originals, batches, colour_here=True),
            partial(by_us, originals, batches, colour_here=False),
            partial(by_us, copies, batches, colour_here=False),
        ]
        for contender in contenders:
            contender()
        peer, here, on_device, shrunk = (len(indices) / seconds for seconds in turn_by_turn(contenders, ROUNDS))
    name, unit = "torchvision v2, PIL", "images/s"
    rows = [
        Row("colour on the CPU", name, peer, here, unit, 4.5),
        Row("colour left to the device", name, peer, on_device, unit, 6),
        Row(f"short side {SHORT_SIDE}, colour left to the device", name, peer, shrunk, unit, 8),
    ]
    text = f"""# Data pipeline: images per second on one core

{len(indices)} images of {root.name}, batches of {BATCH_SIZE} at {SIDE} x {SIDE} pixels; process time, the best of \
{ROUNDS} rounds.

{{rows}}

"Short side {SHORT_SIDE}" is after `python -m detection.data shrink ROOT --short-side {SHORT_SIDE}`.
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure, {"root": {"type": Path, "nargs": "?", "help": "data set in COCO's format"}})
