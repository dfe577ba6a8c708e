"""Augmentation as for SSD (arXiv 1512.02325, sections 2.2 and 3.6), planned from the boxes before a pixel is decoded.

`transform(size, boxes_xyxy, rng)` returns a `View`, so an image is decoded once, no finer than needed, and resampled
once. Colours change last: `distort_colours` works on the finished batch, on the training device.

Chances and order are torchvision's: RandomZoomOut, RandomIoUCrop, SanitizeBoundingBoxes, Resize, the flips,
RandomPhotometricDistort. Colour coming last differs from the paper in that the contrast pivots on the mean of what is
seen instead of the whole image's, and the margin of a zoom-out is distorted along with the picture.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from data import IMAGENET_MEAN
from engine.config import Config

CROP_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)  # least IoU with some object; None: no crop
CROP_TRIALS = 40  # windows tried before another IoU is drawn
CROP_ASPECT_RATIOS = (0.5, 2.0)
REDUCTIONS = (8, 4, 2, 1)  # by which a JPEG decodes to fewer pixels in less time
BRIGHTNESS, CONTRAST, SATURATION = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5)  # factors
HUE = (-0.05, 0.05)  # turns of the colour wheel
MEAN_COLOUR = torch.tensor([round(255 * value) for value in IMAGENET_MEAN], dtype=torch.uint8).view(3, 1, 1)
LUMA = (0.2989, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


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


# ---- what is seen, and where ----------------------------------------------------------------------------------


class View(NamedTuple):
    """The part of a picture that the network sees, and where."""

    part: tuple[int, int, int, int]  # left, top, right, bottom in the picture, whole multiples of `reduction`
    place: tuple[int, int, int, int]  # the same in the square; around it is ImageNet's mean colour
    side: int  # of the square, pixels
    reduction: int  # the part has enough pixels even if each stands for so many by so many
    flips: tuple[bool, bool]  # left-right, upside-down; of the whole square
    boxes_xyxy: np.ndarray  # (k, 4) float32 fractions of the square, of the objects that are still seen
    objects: np.ndarray  # (k,) int64, which of those given they are
    colours: np.ndarray | None  # (8,) float32, see distort_colours

    def render(self, pixels: np.ndarray) -> Tensor:
        """Return the square, (3, side, side) uint8, from the pixels of `part`, (h, w, 3) uint8, reduced or not."""
        left, top, right, bottom = self.place
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        image = interpolate(picture, (bottom - top, right - left), mode="bilinear", antialias=True)[0]
        if self.place != (0, 0, self.side, self.side):
            picture, image = image, MEAN_COLOUR.expand(3, self.side, self.side).clone()
            image[:, top:bottom, left:right] = picture
        dims = [dim for dim, flipped in zip((2, 1), self.flips, strict=True) if flipped]
        return image.flip(dims) if dims else image


Transform = Callable[[tuple[int, int], np.ndarray, np.random.Generator], View]


def train_transform(config: AugmentConfig, input_size: int) -> Transform:
    """Return a transform to random views of input_size x input_size pixels.

    Boxes are cut to what is seen; those that lost their centre to the crop, or have a side below one pixel, are
    removed. A view may have none left."""
    return partial(_train_view, config, input_size)


def eval_transform(input_size: int) -> Transform:
    """Return a transform that resizes the whole picture to input_size x input_size pixels."""
    return partial(_eval_view, input_size)


def _train_view(
    config: AugmentConfig, side: int, size: tuple[int, int], boxes_xyxy: np.ndarray, rng: np.random.Generator
) -> View:
    """size: width and height of the picture. boxes_xyxy: (n, 4) pixels of it."""
    corners = boxes_xyxy.reshape(-1, 2, 2).astype(np.float64)
    window = zoom_out(size, config.zoom_out, rng)
    is_kept = np.ones(len(corners), bool)
    if config.crop_min_scale < 1:
        window, is_kept = iou_crop(window, corners, config.crop_min_scale, rng)
    flips = (rng.random() < config.horizontal_flip, rng.random() < config.vertical_flip)
    colours = draw_colours(rng) if config.photometric else None
    return _view(size, corners, is_kept, window, side, REDUCTIONS, flips, colours)


def _eval_view(side: int, size: tuple[int, int], boxes_xyxy: np.ndarray, rng: np.random.Generator) -> View:
    corners = boxes_xyxy.reshape(-1, 2, 2).astype(np.float64)
    window = np.array([(0, 0), size])
    return _view(size, corners, np.ones(len(corners), bool), window, side, (1,), (False, False), None)


def zoom_out(size: tuple[int, int], most: float, rng: np.random.Generator) -> np.ndarray:
    """Return a window around the picture, corners in its pixels: RandomZoomOut(side_range=(1, most))."""
    picture = np.array(size)
    if rng.random() >= 0.5:
        return np.stack([0 * picture, picture])
    canvas = (picture * rng.uniform(1, most)).astype(np.int64)
    offset = ((canvas - picture) * rng.random(2)).astype(np.int64)
    return np.stack([-offset, canvas - offset])


def iou_crop(
    window: np.ndarray, corners: np.ndarray, min_scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a window inside `window` that holds the centre of an object and has a random IoU with it, or `window`.

    RandomIoUCrop(min_scale), all trials of an IoU in one go. corners: (n, 2, 2) of the objects.
    Returns the window and which objects have their centres in it, (n,) bool."""
    origin, canvas = window[0], window[1] - window[0]
    centres, areas = corners.mean(axis=1), (corners[:, 1] - corners[:, 0]).prod(axis=1)
    while len(corners):
        min_iou = CROP_IOUS[rng.integers(len(CROP_IOUS))]
        if min_iou is None:
            break
        scales, places = rng.random((2, CROP_TRIALS, 2))
        sizes = (canvas * (min_scale + (1 - min_scale) * scales)).astype(np.int64)
        aspect_ratios = sizes[:, 0] / np.maximum(sizes[:, 1], 0.1)  # out of range without width or height
        is_shaped = (aspect_ratios >= CROP_ASPECT_RATIOS[0]) & (aspect_ratios <= CROP_ASPECT_RATIOS[1])
        starts = (origin + ((canvas - sizes) * places).astype(np.int64))[:, None]  # (trials, 1, 2)
        ends = starts + sizes[:, None]
        is_inside = ((starts < centres) & (centres < ends)).all(2)  # (trials, n)
        overlaps = (np.minimum(ends, corners[:, 1]) - np.maximum(starts, corners[:, 0])).clip(0).prod(2)
        ious = overlaps / (sizes.prod(1)[:, None] + areas - overlaps)
        found = (is_inside & (ious >= min_iou)).any(1) & is_shaped
        if found.any():
            first = found.argmax()
            return np.concatenate([starts[first], ends[first]]), is_inside[first]
    return window, np.ones(len(corners), bool)


def _view(
    size: tuple[int, int],
    corners: np.ndarray,
    is_kept: np.ndarray,
    window: np.ndarray,
    side: int,
    reductions: tuple[int, ...],
    flips: tuple[bool, bool],
    colours: np.ndarray | None,
) -> View:
    """Return the view through a window of a picture, which may reach over its edges; `reductions`: the choice.

    The picture's place is rounded to whole pixels of the square, and the boxes follow."""
    (columns, xs), (rows, ys) = (_span(*along, side) for along in zip(*window.tolist(), size, strict=True))
    for reduction in reductions:
        (left, right), (top, bottom) = ((-(-first // reduction), last // reduction) for first, last in (columns, rows))
        if reduction == 1 or (right - left >= xs[1] - xs[0] and bottom - top >= ys[1] - ys[0]):
            break
    part = (left * reduction, top * reduction, right * reduction, bottom * reduction)
    place = (xs[0], ys[0], xs[1], ys[1])

    corners = corners.clip(part[:2], part[2:])
    objects = np.flatnonzero(is_kept & ((corners[:, 1] - corners[:, 0]).min(1) >= 1))
    scales = np.subtract(place[2:], place[:2]) / np.subtract(part[2:], part[:2])
    corners = ((corners[objects] - part[:2]) * scales + place[:2]) / side
    for axis in (0, 1):
        if flips[axis]:
            corners[:, :, axis] = 1 - corners[:, ::-1, axis]
    return View(part, place, side, reduction, flips, corners.reshape(-1, 4).astype(np.float32), objects, colours)


def _span(start: int, end: int, length: int, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return, along one axis, what a window from start to end holds of a picture, and where that is in the square."""
    first, last = max(start, 0), min(end, length)
    low, high = (round((edge - start) * side / (end - start)) for edge in (first, last))
    low = min(low, side - 1)
    return (first, last), (low, max(high, low + 1))  # of a narrow rim of the picture one pixel is seen


# ---- colours --------------------------------------------------------------------------------------------------


def draw_colours(rng: np.random.Generator) -> np.ndarray:
    """Draw colours for one image, (8,) float32 for distort_colours, as RandomPhotometricDistort does.

    Each of brightness, contrast, saturation, hue and channel order changes with probability 0.5."""
    is_on = rng.random(5) < 0.5
    low, high = np.transpose((BRIGHTNESS, CONTRAST, SATURATION, HUE))
    brightness, contrast, saturation, hue = np.where(is_on[:4], low + (high - low) * rng.random(4), (1, 1, 1, 0))
    contrasts = (contrast, 1) if rng.random() < 0.5 else (1, contrast)
    order = rng.permutation(3) if is_on[4] else range(3)
    return np.array([brightness, contrasts[0], saturation, hue, contrasts[1], *order], np.float32)


def distort_colours(images: Tensor, colours: Tensor) -> Tensor:
    """Change the colours of each image of a batch as its row of `colours` says.

    images: (B, 3, H, W) uint8. colours: (B, 8) float32 on the same device: brightness, contrast, saturation (factors),
    hue (turns, at most a sixth), contrast (again, because it may come last) and the channels' new order.
    Returns (B, 3, H, W) uint8: torchvision's operations but for rounding, which happens once, to the nearest."""
    if images.device.type == "cpu":  # one by one they stay in the cache, and neutral steps can be skipped
        return torch.cat([_distort(*one) for one in zip(images.split(1), colours.split(1), strict=True)])
    return _distort(images, colours)


def _distort(images: Tensor, colours: Tensor) -> Tensor:
    pixels = images.float()
    for (distort, neutral), amount in zip(_DISTORTIONS, colours[:, :5].T, strict=True):
        if amount.is_cuda or bool((amount != neutral).any()):  # reading a number from a GPU would wait for it
            pixels = distort(pixels, amount.view(-1, 1, 1, 1))
    pixels = pixels.round_().to(torch.int16).to(torch.uint8)  # on a CPU a third of the time of the direct way
    first_channels = 3 * torch.arange(len(images), device=images.device)[:, None]
    order = (first_channels + colours[:, 5:].long()).flatten()
    return pixels.flatten(0, 1).index_select(0, order).view(images.shape)


def _brighten(pixels: Tensor, factor: Tensor) -> Tensor:
    return pixels.mul_(factor).clamp_(0, 255)


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(pixels.mean((2, 3), keepdim=True))
    return pixels.mul_(factor).add_((1 - factor) * mean).clamp_(0, 255)


def _saturate(pixels: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(pixels)
    return pixels.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue as in HSV space, without the conversion.

    Along the wheel a channel is a trapezoid between the least and the largest of the three: a straight line of slope
    6 (largest - least) per turn, cut off at both. With the middle one, 2 channel - middle continues that line beyond
    the cuts, so that turning moves along it; the order of the other two channels says in which direction."""
    least, largest = pixels.amin(1, keepdim=True), pixels.amax(1, keepdim=True)
    middle = pixels.sum(1, keepdim=True).sub_(least).sub_(largest)
    direction = (pixels.roll(-1, 1) - pixels.roll(-2, 1)).sign_()
    way = (least - largest).mul_(6 * turns)
    moved = direction.mul_(way).add_(pixels, alpha=2).sub_(middle)
    return torch.minimum(torch.maximum(moved, least), largest)  # clamp with tensors takes four times as long on a CPU


_DISTORTIONS = ((_brighten, 1.0), (_contrast, 1.0), (_saturate, 1.0), (_turn_hue, 0.0), (_contrast, 1.0))
