"""Images per second and core from JPEG files to batches to train on, beside torchvision's transforms.v2 on PIL images.

    python -m benchmarks.data_pipeline [/path/to/coco80]

The peer is SSD's recipe as torchvision gives it: decode, RandomPhotometricDistort, RandomZoomOut, RandomIoUCrop,
SanitizeBoundingBoxes, Resize to 300 x 300, RandomHorizontalFlip. Ours is CocoDetection with the same chances,
`collate`, and distort_colours: on the CPU, or left to the device that trains; and both with the images rewritten by
`python -m detection.data shrink`. One thread, process time, turn by turn.

The same results: the numbers that our samples were drawn by are given to torchvision's functions, one after the other,
and the images and boxes that come out are compared. That those numbers have torchvision's chances is tested in
tests/detection/coco/test_transforms.py.

Asked: 4.5 times the peer's throughput with colour on the CPU, 6 with colour on the device, 8 with shrunken images.
Without a data set in COCO's format, one is drawn: 64 images of about the size of COCO's. Takes a minute.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from benchmarks.comparison import Row, turn_by_turn, write_page
from detection.coco.annotations import CocoFile, read_coco
from detection.coco.dataset import CocoDetection, collate, read_image
from detection.coco.transforms import (
    MEAN_COLOUR,
    AugmentConfig,
    distort_colours,
    iou_crop,
    train_transform,
    zoom_out,
)
from detection.prepare.shrink import shrink
from detection.shapes import generate
from engine.command import RunError, run_command

IMAGES, DRAWN, BATCH_SIZE, SIDE, SHORT_SIDE, ROUNDS = 192, 64, 32, 300, 400, 7
AUGMENT = AugmentConfig()
# Whole pixels of the square, and whole blocks of a JPEG decoded at half its size, move an edge by up to 1.5 of 300.
MOST = {"image": 6.0, "colours": 3.0, "box": 1.5}
MOST_ON_AVERAGE = 1.0  # of images; shifted by a pixel they differ by 2.4 (drawn) or 5.7 (photographs)


# ---- torchvision ---------------------------------------------------------------------------------------------------

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


def by_torchvision(coco: CocoFile, indices: list[int]) -> Tensor:
    """(B, 3, S, S) uint8."""
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
    return torch.stack(images)


def replay(coco: CocoFile, index: int) -> tuple[Tensor, np.ndarray]:
    """The sample (0, index) of CocoDetection, by torchvision's functions step by step from the full image.

    Returns the image (3, S, S) uint8 before its colours are changed, and the boxes (k, 4) in its pixels."""
    rng = np.random.default_rng((0, 0, index))
    boxes_xyxy, _, is_crowd = coco.objects(index)
    corners = boxes_xyxy[~is_crowd].reshape(-1, 2, 2).astype(np.float64)
    image = torch.from_numpy(read_image(coco, index)).permute(2, 0, 1)
    height, width = image.shape[1:]
    canvas = zoom_out((width, height), AUGMENT.zoom_out, rng)
    crop, is_kept = iou_crop(canvas, corners, AUGMENT.crop_min_scale, rng)
    is_flipped = rng.random() < AUGMENT.horizontal_flip

    (left, top), (right, bottom) = canvas.tolist()
    image = functional.pad(image, [-left, -top, right - width, bottom - height], fill=MEAN_COLOUR.flatten().tolist())
    (crop_left, crop_top), (crop_width, crop_height) = (crop[0] - canvas[0]).tolist(), (crop[1] - crop[0]).tolist()
    image = functional.resized_crop(image, crop_top, crop_left, crop_height, crop_width, [SIDE, SIDE], antialias=True)
    corners = corners[is_kept].clip(*crop) - crop[0]
    corners = corners[(corners[:, 1] - corners[:, 0] >= 1).all(1)] * SIDE / (crop[1] - crop[0])
    if is_flipped:
        image = functional.horizontal_flip(image)
        corners[:, :, 0] = SIDE - corners[:, ::-1, 0]
    return image, corners.reshape(-1, 4)


def distort_by_torchvision(image: Tensor, colours: Tensor) -> Tensor:
    """What distort_colours does with one image, (3, S, S) uint8, by torchvision's functions."""
    brightness, contrast, saturation, hue, late_contrast, *order = colours.tolist()
    image = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
    image = functional.adjust_hue(functional.adjust_saturation(image, saturation), hue)
    return functional.permute_channels(functional.adjust_contrast(image, late_contrast), [int(c) for c in order])


# ---- ours ----------------------------------------------------------------------------------------------------------


def by_us(dataset: CocoDetection, indices: list[int], *, colour_here: bool) -> Tensor:
    """(B, 3, S, S) uint8."""
    batch = collate(dataset.__getitems__([(0, index) for index in indices]))  # as loaders do
    return distort_colours(batch["images"], batch["colours"]) if colour_here else batch["images"]


def compare(dataset: CocoDetection, indices: list[int]) -> dict[str, float]:
    """The largest differences: of an image before its colours are changed and of the change, in levels of the mean
    pixel; of a box, in pixels of the square. Raises RunError where one is more than rounding makes."""
    worst, differences = dict.fromkeys(MOST, 0.0), []
    for index in indices:
        expected, expected_boxes = replay(dataset.coco, index)
        sample, name = dataset[0, index], dataset.coco.images[index].file_name
        image, boxes = sample["image"], sample["boxes_xyxy"].numpy() * SIDE
        distorted = distort_colours(image[None], sample["colours"][None])[0]
        if len(boxes) != len(expected_boxes):
            raise RunError(f"{name}: {len(boxes)} boxes are left, torchvision leaves {len(expected_boxes)}")
        found = {
            "image": (image.float() - expected).abs().mean().item(),
            "colours": (distorted.float() - distort_by_torchvision(image, sample["colours"])).abs().mean().item(),
            "box": float(np.abs(boxes - expected_boxes).max(initial=0)),
        }
        differences.append(found["image"])
        for what, most in MOST.items():
            if found[what] > most:
                raise RunError(f"{name}: {what} differs from torchvision's by {found[what]:.2f}, expected {most:g}")
            worst[what] = max(worst[what], found[what])
    worst["mean image"] = sum(differences) / len(differences)
    if worst["mean image"] > MOST_ON_AVERAGE:
        raise RunError(f"images differ from torchvision's by {worst['mean image']:.2f} on average")
    return worst


# ---- the command ---------------------------------------------------------------------------------------------------


def main(device: torch.device) -> None:
    """Time everything turn by turn and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, nargs="?", help="data set in COCO's format, with images/train")
    root = parser.parse_args().root
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        if root is None:
            root = Path(work) / "drawn"
            generate(root, num_train=DRAWN, num_val=1, image_size=554)
        shrink(root, Path(work) / "shrunk", SHORT_SIDE, workers=2)
        originals, copies = (
            CocoDetection(
                read_coco(folder / "annotations/instances_train.json", folder / "images/train"),
                train_transform(AUGMENT, SIDE),
            )
            for folder in (root.resolve(), Path(work) / "shrunk")
        )
        measure(originals, copies, root.name)


def measure(originals: CocoDetection, copies: CocoDetection, name: str) -> None:
    """The same images of both data sets, those with objects."""
    coco = originals.coco
    indices = [index for index in range(len(coco.images)) if not coco.objects(index)[2].all()][:IMAGES]
    worst = compare(originals, indices)
    batches = [indices[start : start + BATCH_SIZE] for start in range(0, len(indices), BATCH_SIZE)]

    def peer() -> None:
        torch.manual_seed(0)  # the same crops in every round, so that the best round is the least disturbed one
        for batch in batches:
            by_torchvision(coco, batch)

    def ours(dataset: CocoDetection, colour_here: bool) -> None:
        for batch in batches:
            by_us(dataset, batch, colour_here=colour_here)

    def decoding(dataset: CocoDetection) -> None:
        for index in indices:
            with Image.open(dataset.coco.file(index).path) as image:
                image.load()

    contenders = [
        peer,
        partial(ours, originals, True),
        partial(ours, originals, False),
        partial(ours, copies, True),
        partial(ours, copies, False),
        partial(decoding, originals),
        partial(decoding, copies),
    ]
    for contender in contenders:
        contender()
    rates = [len(indices) / seconds for seconds in turn_by_turn(contenders, ROUNDS)]
    peer_rate, here, on_device, copies_here, copies_on_device, decoded, copies_decoded = rates
    v2_name, unit = "torchvision v2, PIL", "images/s"
    rows = [
        Row("colour on the CPU", v2_name, peer_rate, here, unit, 4.5),
        Row("colour left to the device", v2_name, peer_rate, on_device, unit, 6),
        Row(f"short side {SHORT_SIDE}, colour on the CPU", v2_name, peer_rate, copies_here, unit),
        Row(f"short side {SHORT_SIDE}, colour left to the device", v2_name, peer_rate, copies_on_device, unit, 8),
        Row("beside bare decoding, colour left to the device", "Pillow", decoded, on_device, unit),
        Row(f"short side {SHORT_SIDE}, beside bare decoding", "Pillow", copies_decoded, copies_on_device, unit),
    ]
    text = f"""# Data pipeline: images per second on one core

{len(indices)} images of {name}, batches of {BATCH_SIZE} at {SIDE} x {SIDE} pixels; process time, the best of {ROUNDS}
rounds.

{{rows}}

The same draws carried out by torchvision's functions one after the other: before its colours are changed, no image
differs by more than {worst["image"]:.2f} of 256 levels in the mean of its pixels, on average {worst["mean image"]:.2f};
the change of colours by no more than {worst["colours"]:.2f}; no box by more than {worst["box"]:.2f} pixels of {SIDE}.
"Short side {SHORT_SIDE}" is after `python -m detection.data shrink ROOT --short-side {SHORT_SIDE}`. The last two rows
are what is left of the speed of bare decoding.
"""
    write_page(__file__, text, rows, torch.device("cpu"))


if __name__ == "__main__":
    run_command(main)
