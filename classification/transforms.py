"""Augmentation for classification with torchvision.transforms.v2: per image in the loaders, then per batch.

It follows the recipe of Swin (arXiv 2103.14030, appendix A2.1), which is based on DeiT (arXiv 2012.12877, table 9).
The defaults of RandAugmentConfig are timm's rand-m9-mstd0.5-inc1, but with torchvision's operations.
"""

import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from engine.config import Config

BICUBIC = InterpolationMode.BICUBIC
MAGNITUDE_STEPS = 100  # number of steps from no change to the strongest change
FILL = [124, 116, 104]  # colour of pixels left empty by an operation: ImageNet's mean, which is normalized to 0


class RandAugmentConfig(Config):
    """RandAugment (Cubuk et al., arXiv 1909.13719)."""

    operations: int = Field(2, ge=1, description="operations per image")
    probability: float = Field(0.5, ge=0, le=1, description="probability of applying each operation")
    magnitude: float = Field(9.0, ge=0, le=10, description="mean magnitude; 10 is the strongest")
    magnitude_std: float = Field(0.5, ge=0, description="standard deviation of the magnitude, drawn for each operation")


class AugmentConfig(Config):
    """Augmentation of training images; 0 or null turns a step off. A batch gets mixup or CutMix, never both."""

    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="range of the crop's share of the image area")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    rand_augment: RandAugmentConfig | None = Field(RandAugmentConfig(), description="RandAugment; null: off")
    color_jitter: float = Field(0.0, ge=0, description="strength of brightness, contrast and saturation jitter; 0: off")
    erase: float = Field(0.25, ge=0, le=1, description="probability of erasing a rectangle (arXiv 1708.04896)")
    mixup: float = Field(0.8, ge=0, description="alpha of mixup (arXiv 1710.09412); 0: off")
    cutmix: float = Field(1.0, ge=0, description="alpha of CutMix (arXiv 1905.04899); 0: off")

    @field_validator("crop_scale")
    @classmethod
    def _is_a_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("expected two shares of the image area, above 0 and at most 1, the smaller share first")
        return scale


class RandAugment(nn.Module):
    """Torchvision's RandAugment, but with a random magnitude for each operation."""

    def __init__(self, config: RandAugmentConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, image: Image.Image) -> Image.Image:
        config = self.config
        for _ in range(config.operations):
            if torch.rand(()) < config.probability:
                magnitude = config.magnitude + config.magnitude_std * float(torch.randn(()))
                step = round(min(max(magnitude, 0), 10) / 10 * MAGNITUDE_STEPS)
                image = v2.RandAugment(1, step, MAGNITUDE_STEPS + 1, interpolation=BICUBIC, fill=FILL)(image)
        return image


def train_transform(config: AugmentConfig, input_size: int) -> v2.Compose:
    """Return the random transform from a PIL image to a training image of input_size x input_size pixels."""
    steps = [
        v2.RandomResizedCrop(input_size, scale=config.crop_scale, interpolation=BICUBIC),
        v2.RandomHorizontalFlip(config.flip),
    ]
    if config.rand_augment:
        steps.append(RandAugment(config.rand_augment))
    if config.color_jitter:
        steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
    return v2.Compose(steps)


def eval_transform(input_size: int, resize_size: int) -> v2.Compose:
    """Return a transform of PIL images: resize the shorter side to resize_size, then center-crop input_size pixels."""
    return v2.Compose([v2.Resize(resize_size, interpolation=BICUBIC), v2.CenterCrop(input_size)])


class BatchAugment:
    """Augment a batch of normalized images: erase random rectangles, then mix images by mixup or CutMix."""

    def __init__(self, config: AugmentConfig, num_classes: int) -> None:
        self.erase_probability = config.erase
        self.erase = v2.RandomErasing(p=1)
        kinds = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
            if alpha
        ]
        self.mix = v2.RandomChoice(kinds) if kinds else None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and their targets: the labels, or class shares, (B, C) float, if images are mixed.

        images: (B, 3, S, S) float, normalized, changed in place. labels: (B,) int64."""
        for index in torch.nonzero(torch.rand(len(images)) < self.erase_probability).flatten().tolist():
            box = self.erase.make_params([images[index]])
            rows, columns = (slice(box[start], box[start] + box[size]) for start, size in ("ih", "jw"))
            if box["v"] is not None:  # None: torchvision found no rectangle that fits
                # Draw the noise on the images' device. torchvision draws it on the CPU, and a GPU would wait for it.
                images[index, :, rows, columns] = torch.randn_like(images[index, :, rows, columns])
        return self.mix(images, labels) if self.mix else (images, labels)
