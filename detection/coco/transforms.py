"""Data augmentation, planned from the boxes before decoding the image.

`transform(size, boxes_xyxy, rng)` returns a `View`, and `Mosaic.views` returns the views of the images of a mosaic. An
image is then decoded and resampled only once, at no higher resolution than needed. `render` creates the network input
from the views. `distort_colours` is applied last, to the collated batch on the training device.

GEOMETRIES lists the policies, which choose the visible part of an image. With every policy, flips and colours follow:

- ssd: zoom-out and crop of SSD (arXiv 1512.02325, sections 2.2 and 3.6).
- lsj: large-scale jitter (arXiv 2012.07177, section 3), with a scale of 0.1 to 2.0.
- mosaic: four images around a random centre (YOLOv4, arXiv 2004.10934). The last epochs use ssd instead. In YOLOX
  (arXiv 2107.08430), too, the last epochs have no mosaic.

Probabilities and parameters of ssd, flips and colours are those of torchvision's RandomZoomOut, RandomIoUCrop,
SanitizeBoundingBoxes, Resize, flips and RandomPhotometricDistort, in this order. Unlike in the paper, colours are
distorted last. So contrast is relative to the mean of the visible part, not of the whole image, and the margin of a
zoom-out is distorted, too.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from data import IMAGENET_MEAN
from engine.config import Config

CROP_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)  # minimum IoU with at least one object; None: no crop
CROP_TRIALS = 40  # windows tried before a new minimum IoU is drawn
CROP_ASPECT_RATIOS = (0.5, 2.0)
LSJ_SCALES = (0.1, 2.0)  # side of the resized image, as a fraction of the side of the square
MOSAIC_SCALES = (0.5, 1.5)  # the same, for each image of a mosaic
MOSAIC_CENTRES = (0.25, 0.75)  # range of the common corner of the images of a mosaic, fractions of the square
MOSAIC_CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))  # (column, row) of each image of a mosaic
REDUCTIONS = (8, 4, 2, 1)  # a JPEG can be decoded faster to 1/8, 1/4 or 1/2 of its width and height
BRIGHTNESS, CONTRAST, SATURATION = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5)  # factors
HUE = (-0.05, 0.05)  # fractions of a full turn of the colour wheel
MEAN_COLOUR = torch.tensor([round(255 * value) for value in IMAGENET_MEAN], dtype=torch.uint8).view(3, 1, 1)
LUMA = (0.2989, 0.587, 0.114)  # weights of red, green, blue (ITU-R BT.601)


class AugmentConfig(Config):
    """Augmentation of training images."""

    policy: Literal["ssd", "lsj", "mosaic"] = Field(
        "ssd",
        description="ssd: zoom-out and crop of SSD; lsj: large-scale jitter, which resizes the image to 0.1 to 2.0 "
        "times the input side, then crops or pads it; mosaic: four images around a random centre. Flips and colours "
        "apply to all policies",
    )
    mosaic_share: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share of the epochs that have mosaics, from the first epoch; the remaining epochs use the policy "
        "ssd; ignored by other policies",
    )
    photometric: bool = Field(True, description="distort brightness, contrast, saturation, hue and channel order")
    zoom_out: float = Field(
        4.0,
        ge=1,
        description="half of the images are padded to at most this many times their width and height; 1: off; "
        "ignored by lsj and in epochs with mosaic",
    )
    crop_min_scale: float = Field(
        0.3,
        gt=0,
        le=1,
        description="minimum side length of a random crop, as a fraction of the image side; 1: off; ignored by lsj "
        "and in epochs with mosaic",
    )
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability of an upside-down flip")


# ---- views: which part of an image is shown where ------------------------------------------------------------


class View(NamedTuple):
    """The part of an image that is shown to the network, and its position in the square network input.

    The views of a mosaic share one square, so they have the same side, flips and colours."""

    part: tuple[int, int, int, int]  # left, top, right, bottom in the image; multiples of `reduction`
    place: tuple[int, int, int, int]  # where the part goes in the square; the margin has ImageNet's mean colour
    side: int  # side length of the square, pixels
    reduction: int  # the part has enough pixels if it is decoded at 1/reduction of its width and height
    flips: tuple[bool, bool]  # whether the square is flipped left-right, and upside-down
    boxes_xyxy: np.ndarray  # (k, 4) float32 fractions of the square, for the k objects that remain visible
    objects: np.ndarray  # (k,) int64, indices of these objects in the original boxes
    colours: np.ndarray | None  # (8,) float32, see distort_colours


def render(views: Sequence[View], parts: Sequence[np.ndarray]) -> Tensor:
    """Render the square that all views share, (3, side, side) uint8.

    parts: for each view, (h, w, 3) uint8, the part of its image at full or reduced size."""
    side, flips = views[0].side, views[0].flips
    images = []
    for view, pixels in zip(views, parts, strict=True):
        left, top, right, bottom = view.place
        part = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        images.append(interpolate(part, (bottom - top, right - left), mode="bilinear", antialias=True)[0])
    square = images[0]
    if views[0].place != (0, 0, side, side):
        square = MEAN_COLOUR.expand(3, side, side).clone()
        for view, image in zip(views, images, strict=True):
            left, top, right, bottom = view.place
            square[:, top:bottom, left:right] = image
    dims = [dim for dim, flipped in zip((2, 1), flips, strict=True) if flipped]
    return square.flip(dims) if dims else square


Transform = Callable[[tuple[int, int], np.ndarray, np.random.Generator], View]


def train_transform(config: AugmentConfig, input_size: int) -> Transform:
    """Return a transform to random views of input_size x input_size pixels.

    Boxes are clipped to the view. Boxes are removed if their centre is outside the crop or a side is shorter than one
    pixel of the image. A view may have no boxes left."""
    return partial(_train_view, config, input_size)


def eval_transform(input_size: int) -> Transform:
    """Return a transform that resizes the whole image to input_size x input_size pixels."""
    return partial(_eval_view, input_size)


def _train_view(
    config: AugmentConfig, side: int, size: tuple[int, int], boxes_xyxy: np.ndarray, rng: np.random.Generator
) -> View:
    """Draw a random view. size: width and height of the image. boxes_xyxy: (n, 4) pixels."""
    corners = boxes_xyxy.reshape(-1, 2, 2).astype(np.float64)
    window, is_kept = GEOMETRIES[config.policy](config, size, corners, rng)
    return _view(size, corners, is_kept, window, side, REDUCTIONS, *_draw_flips_and_colours(config, rng))


def _eval_view(side: int, size: tuple[int, int], boxes_xyxy: np.ndarray, rng: np.random.Generator) -> View:
    corners = boxes_xyxy.reshape(-1, 2, 2).astype(np.float64)
    window = np.array([(0, 0), size])
    return _view(size, corners, np.ones(len(corners), bool), window, side, (1,), (False, False), None)


class Mosaic(NamedTuple):
    """Draws views of four images that meet at a random centre of the square."""

    config: AugmentConfig
    side: int  # side length of the square, pixels
    epochs: int  # number of epochs with mosaic, from the first

    def views(
        self, sizes: Sequence[tuple[int, int]], boxes_xyxy: Sequence[np.ndarray], rng: np.random.Generator
    ) -> list[View]:
        """Draw the views of the images, in the order of MOSAIC_CORNERS.

        sizes: width and height of each of the four images. boxes_xyxy: (n, 4) pixels, for each image."""
        centre = np.rint(self.side * rng.uniform(*MOSAIC_CENTRES, 2)) / self.side  # on a whole pixel: no gaps
        scales = rng.uniform(*MOSAIC_SCALES, len(MOSAIC_CORNERS))
        flips, colours = _draw_flips_and_colours(self.config, rng)
        views = []
        for size, boxes, corner, scale in zip(sizes, boxes_xyxy, MOSAIC_CORNERS, scales, strict=True):
            corners = boxes.reshape(-1, 2, 2).astype(np.float64)
            window = mosaic_window(size, corner, centre, scale)
            is_kept = has_centre_in(window, corners)
            views.append(_view(size, corners, is_kept, window, self.side, REDUCTIONS, flips, colours))
        return views


def plan_mosaic(config: AugmentConfig, input_size: int, epochs: int) -> Mosaic | None:
    """Return the mosaic for a training run of this many epochs, or None if the policy is not mosaic."""
    return Mosaic(config, input_size, round(config.mosaic_share * epochs)) if config.policy == "mosaic" else None


def _draw_flips_and_colours(
    config: AugmentConfig, rng: np.random.Generator
) -> tuple[tuple[bool, bool], np.ndarray | None]:
    flips = (rng.random() < config.horizontal_flip, rng.random() < config.vertical_flip)
    return flips, draw_colours(rng) if config.photometric else None


# ---- geometry: windows --------------------------------------------------------------------------------------------
# A window is the rectangle that fills the square, an array (2, 2): upper left and lower right corner, in pixels of the
# image. It may extend beyond the image.


def ssd_window(
    config: AugmentConfig, size: tuple[int, int], corners: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a window as in SSD: zoom out, then crop. size: width and height. corners: (n, 2, 2) boxes in pixels.

    Returns the window, and (n,) bool: whether each object is kept."""
    window = zoom_out(size, config.zoom_out, rng)
    if config.crop_min_scale < 1:
        return iou_crop(window, corners, config.crop_min_scale, rng)
    return window, np.ones(len(corners), bool)


def lsj_window(
    config: AugmentConfig, size: tuple[int, int], corners: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a window for large-scale jitter: resize the image to a scale, then crop or pad it to the square.

    Arguments and result are as in `ssd_window`. The position of the crop or of the padded image is uniform."""
    shape = np.array(size) / rng.uniform(*LSJ_SCALES)
    start = (size - shape) * rng.random(2)  # negative if the window is larger than the image
    window = np.stack([start, start + shape])
    return window, has_centre_in(window, corners)


GEOMETRIES = {"ssd": ssd_window, "lsj": lsj_window, "mosaic": ssd_window}  # mosaic: for its last epochs


def mosaic_window(size: tuple[int, int], corner: tuple[int, int], centre: np.ndarray, scale: float) -> np.ndarray:
    """Return the window in which an image, resized to `scale` times the side of the square, has a corner at the centre.

    corner: (column, row) of the image in the mosaic. (0, 0), the upper left image, has its lower right corner at the
    centre. centre: (x, y), fractions of the square."""
    shape = np.array(size) / scale
    start = size * (1 - np.array(corner)) - centre * shape
    return np.stack([start, start + shape])


def has_centre_in(window: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether the centre of each box is in the window. corners: (n, 2, 2) boxes in pixels."""
    centres = corners.mean(axis=1)
    return ((window[0] < centres) & (centres < window[1])).all(1)


def zoom_out(size: tuple[int, int], max_scale: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a window around the image, like RandomZoomOut(side_range=(1, max_scale)); return its corners in pixels."""
    image = np.array(size)
    if rng.random() >= 0.5:
        return np.stack([0 * image, image])
    canvas = (image * rng.uniform(1, max_scale)).astype(np.int64)
    offset = ((canvas - image) * rng.random(2)).astype(np.int64)
    return np.stack([-offset, canvas - offset])


def iou_crop(
    window: np.ndarray, corners: np.ndarray, min_scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a crop inside `window` like RandomIoUCrop(min_scale), with all trials for one minimum IoU vectorised.

    At least one object has its centre in the crop and at least the minimum IoU with the crop. corners: (n, 2, 2) boxes.
    Returns the crop, or `window` if none is drawn, and (n,) bool: whether the centre of each object is in the crop."""
    origin, canvas = window[0], window[1] - window[0]
    centres, areas = corners.mean(axis=1), (corners[:, 1] - corners[:, 0]).prod(axis=1)
    while len(corners):
        min_iou = CROP_IOUS[rng.integers(len(CROP_IOUS))]
        if min_iou is None:
            break
        scales, places = rng.random((2, CROP_TRIALS, 2))
        sizes = (canvas * (min_scale + (1 - min_scale) * scales)).astype(np.int64)
        aspect_ratios = sizes[:, 0] / np.maximum(sizes[:, 1], 0.1)  # a side of 0 gives a ratio out of range
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
    """Return the view of an image through a window, which may extend beyond the image, but must overlap it.

    reductions: allowed values, descending. The place in the square is rounded to pixels; boxes are scaled to match."""
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


def _span(start: float, end: float, length: int, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the visible span of an image along one axis, and the span of this part in the square."""
    first, last = max(start, 0), min(end, length)
    low, high = (round((edge - start) * side / (end - start)) for edge in (first, last))
    low = min(low, side - 1)
    # At least one pixel, even for a narrow strip of the image.
    return (math.floor(first), math.ceil(last)), (low, max(high, low + 1))


# ---- colours --------------------------------------------------------------------------------------------------


def draw_colours(rng: np.random.Generator) -> np.ndarray:
    """Draw the colour parameters of one image, (8,) float32 for distort_colours, like RandomPhotometricDistort.

    Each of brightness, contrast, saturation, hue and channel order changes with probability 0.5."""
    is_on = rng.random(5) < 0.5
    low, high = np.transpose((BRIGHTNESS, CONTRAST, SATURATION, HUE))
    brightness, contrast, saturation, hue = np.where(is_on[:4], low + (high - low) * rng.random(4), (1, 1, 1, 0))
    contrasts = (contrast, 1) if rng.random() < 0.5 else (1, contrast)
    order = rng.permutation(3) if is_on[4] else range(3)
    return np.array([brightness, contrasts[0], saturation, hue, contrasts[1], *order], np.float32)


def distort_colours(images: Tensor, colours: Tensor) -> Tensor:
    """Distort the colours of each image of a batch by its row of `colours`.

    images: (B, 3, H, W) uint8. colours: (B, 8) float32 on the same device: brightness, contrast, saturation (factors),
    hue (turns, -1/6 to 1/6), contrast (again, because it may come last), and the new order of the three channels.
    Returns (B, 3, H, W) uint8, like torchvision's operations except that values are rounded only once, at the end."""
    if images.device.type == "cpu":  # one by one, so that an image stays in the CPU cache and neutral steps are skipped
        return torch.cat([_distort(*one) for one in zip(images.split(1), colours.split(1), strict=True)])
    return _distort(images, colours)


def _distort(images: Tensor, colours: Tensor) -> Tensor:
    pixels = images.float()
    for (distort, neutral), amount in zip(_DISTORTIONS, colours[:, :5].T, strict=True):
        if amount.is_cuda or bool((amount != neutral).any()):  # reading a value from the GPU would synchronise
            pixels = distort(pixels, amount.view(-1, 1, 1, 1))
    pixels = pixels.round_().to(torch.int16).to(torch.uint8)  # three times as fast on a CPU as directly to uint8
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


def _shift_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue as in HSV space, without the conversion. turns: fractions of a full turn of the colour wheel.

    As a function of hue, a channel is a line of slope +-6 (largest - least) per turn, clipped to least ... largest.
    `2 channel - middle` is the value before clipping (`middle` is the second largest channel). A hue shift moves this
    value along the line and clips it again. The order of the other two channels gives the sign of the slope."""
    least, largest = pixels.amin(1, keepdim=True), pixels.amax(1, keepdim=True)
    middle = pixels.sum(1, keepdim=True).sub_(least).sub_(largest)
    direction = (pixels.roll(-1, 1) - pixels.roll(-2, 1)).sign_()
    shift = (least - largest).mul_(6 * turns)
    moved = direction.mul_(shift).add_(pixels, alpha=2).sub_(middle)
    return torch.minimum(torch.maximum(moved, least), largest)  # four times as fast on a CPU as clamp with tensors


_DISTORTIONS = ((_brighten, 1.0), (_contrast, 1.0), (_saturate, 1.0), (_shift_hue, 0.0), (_contrast, 1.0))
