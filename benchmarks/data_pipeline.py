"""Data loading from JPEG files to training batches, in images/s per core, compared with torchvision's transforms.v2.

    python -m benchmarks.data_pipeline [/path/to/coco80]

The peer is torchvision's SSD recipe on PIL images. Ours is CocoDetection with the same probabilities, then `collate`.
Colours are distorted on the CPU, or not at all because the training device would distort them. The second case is also
measured with images shrunk by `python -m detection.data shrink`. Default: 64 synthetic images. Takes a minute.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks.comparison import Page, Row, run_benchmark, time_alternating
from detection.coco.annotations import CocoFile, read_coco
from detection.coco.dataset import CocoDetection, collate
from detection.coco.transforms import MEAN_COLOUR, AugmentConfig, distort_colours, train_transform
from detection.prepare.shrink import shrink
from detection.shapes import generate

IMAGES, SYNTHETIC_IMAGES, BATCH_SIZE, SIDE, SHORT_SIDE, ROUNDS = 192, 64, 32, 300, 400, 7
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
    """Make batches (B, 3, S, S) uint8. The seed is fixed, so every round has the same crops and the same work."""
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


def by_ours(dataset: CocoDetection, batches: list[list[int]], *, colour_on_cpu: bool) -> None:
    """Make batches of the same images with the code that runs in this project's loader processes."""
    for indices in batches:
        batch = collate(dataset.__getitems__([(0, index) for index in indices]))
        if colour_on_cpu:
            distort_colours(batch["images"], batch["colours"])


def measure(device: torch.device, root: Path | None) -> Page:
    """Time all contenders on images that have objects."""
    with tempfile.TemporaryDirectory() as work:
        if root is None:
            root = Path(work) / "synthetic"
            generate(root, num_train=SYNTHETIC_IMAGES, num_val=1, image_size=554)
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
            partial(by_ours, originals, batches, colour_on_cpu=True),
            partial(by_ours, originals, batches, colour_on_cpu=False),
            partial(by_ours, copies, batches, colour_on_cpu=False),
        ]
        for contender in contenders:
            contender()
        peer, on_cpu, on_device, shrunk = (len(indices) / seconds for seconds in time_alternating(contenders, ROUNDS))
    name, unit = "torchvision v2, PIL", "images/s"
    rows = [
        Row("colour distortion on the CPU", name, peer, on_cpu, unit, 4.5),
        Row("colour distortion on the device", name, peer, on_device, unit, 6),
        Row(f"short side {SHORT_SIDE}, colour distortion on the device", name, peer, shrunk, unit, 8),
    ]
    text = f"""# Data pipeline: images per second on one core

{len(indices)} images of {root.name}, batches of {BATCH_SIZE} at {SIDE} x {SIDE} pixels; process time, the minimum of \
{ROUNDS} rounds. Colour distortion on the device is not included in the time.

{{rows}}

"Short side {SHORT_SIDE}": images shrunk by `python -m detection.data shrink ROOT --short-side {SHORT_SIDE}`.
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure, {"root": {"type": Path, "nargs": "?", "help": "COCO data set (default: synthetic images)"}})
