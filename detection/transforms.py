"""Augmentation of an image and its boxes as for SSD (arXiv 1512.02325, sections 2.2 and 3.6), by torchvision v2.

A sample goes in and out as {"image": (3, H, W) uint8 tv_tensors.Image, "boxes": (n, 4) tv_tensors.BoundingBoxes in
XYXY pixels, "labels": (n,) int64}; any other entries pass through. Training resizes to a square, so shapes change.

Flips and colour come after the resize, where an image has a third of the pixels of COCO's. A flip gives the same
either way. Colour works pixel by pixel, so resizing and it all but commute; the contrast pivots on the mean of the
crop instead of the whole image's, and the margin of a zoom-out is distorted along with the picture.
"""

import torch
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2

from data import IMAGENET_MEAN
from engine.config import Config


class AugmentConfig(Config):
    """How training images are varied."""

    photometric: bool = Field(True, description="distort brightness, contrast, saturation, hue, channel order")
    zoom_out: float = Field(
        4.0, ge=1, description="half the images shrink onto a canvas of up to so many times their side; 1: off"
    )
    crop_min_scale: float = Field(
        0.3, gt=0, le=1, description="smallest side of a random crop, fraction of the image's; 1: off"
    )
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability of an upside-down flip")


class RandomIoUCrop(v2.RandomIoUCrop):
    """torchvision's crop that keeps the centre of an object and a random IoU with it, in a tenth of its time.

    It draws the same windows with the same chances, but tests all trials of an IoU in one go; torchvision's loop
    over scalar tensors takes longer than everything else that happens to a small image."""

    def make_params(self, flat_inputs: list) -> dict:
        boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
        canvas = torch.tensor(boxes.canvas_size[::-1])  # width, height
        boxes_xyxy = boxes.as_subclass(Tensor)
        centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        while len(boxes_xyxy) > 0:
            min_iou = self.options[int(torch.randint(len(self.options), ()))]
            if min_iou >= 1:  # stands for the whole image
                break
            scales = torch.empty(self.trials, 2).uniform_(self.min_scale, self.max_scale)
            sizes = (scales * canvas).floor()  # (trials, 2)
            corners = ((canvas - sizes) * torch.rand(self.trials, 2)).floor()
            windows_xyxy = torch.cat([corners, corners + sizes], dim=1)
            aspect_ratios = sizes[:, 0] / sizes[:, 1]
            inside = ((corners[:, None] < centres) & (centres < (corners + sizes)[:, None])).all(2)  # (trials, n)
            best_iou = box_iou(windows_xyxy, boxes_xyxy).masked_fill(~inside, -1).amax(1)
            good = (
                (best_iou >= min_iou)
                & (aspect_ratios >= self.min_aspect_ratio)
                & (aspect_ratios <= self.max_aspect_ratio)
            )
            if good.any():
                first = int(good.int().argmax())
                left, top, width, height = [*corners[first].int().tolist(), *sizes[first].int().tolist()]
                place = {"top": top, "left": left, "height": height, "width": width}
                return place | {"is_within_crop_area": inside[first]}
        return {}


def train_transform(config: AugmentConfig, input_size: int) -> v2.Transform:
    """Random augmentation by torch's global generator, to input_size x input_size pixels.

    Boxes are cut to the image; those that lost their centre to the crop, or have a side below one pixel, go, and
    their labels with them. An image may be left without any."""
    transforms: list[v2.Transform] = []
    if config.zoom_out > 1:
        mean_colour = [round(255 * value) for value in IMAGENET_MEAN]
        transforms.append(v2.RandomZoomOut(mean_colour, side_range=(1, config.zoom_out), p=0.5))
    if config.crop_min_scale < 1:
        transforms.append(RandomIoUCrop(min_scale=config.crop_min_scale))
    transforms += [
        v2.ClampBoundingBoxes(),  # or the next would drop what reaches over the edge, not cut it
        v2.SanitizeBoundingBoxes(),  # finds "labels" by that name
        v2.Resize((input_size, input_size), antialias=True),
    ]
    if config.horizontal_flip > 0:
        transforms.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip > 0:
        transforms.append(v2.RandomVerticalFlip(config.vertical_flip))
    if config.photometric:
        transforms.append(v2.RandomPhotometricDistort())
    return v2.Compose(transforms)


def eval_transform(input_size: int) -> v2.Transform:
    """Resize to input_size x input_size pixels, and nothing else."""
    return v2.Resize((input_size, input_size), antialias=True)
