"""Augmentation for classification, by torchvision.transforms.v2: image by image in the loaders, then on the batch.

The recipe is that of Swin (arXiv 2103.14030, appendix A2.1), which is DeiT's (arXiv 2012.12877, table 9).
RandAugmentConfig's defaults are timm's rand-m9-mstd0.5-inc1, with the operations of torchvision.
"""

import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from engine.config import Config

BICUBIC = InterpolationMode.BICUBIC
MAGNITUDE_STEPS = 100  # from none to most
FILL = [124, 116, 104]  # where an operation leaves no image: ImageNet's mean, 0 to the network


class RandAugmentConfig(Config):
    """RandAugment (Cubuk et al., arXiv 1909.13719)."""

    operations: int = Field(2, ge=1, description="per image")
    probability: float = Field(0.5, ge=0, le=1, description="of applying each")
    magnitude: float = Field(9.0, ge=0, le=10, description="mean; 10 is the most")
    magnitude_std: float = Field(0.5, ge=0, description="standard deviation of the magnitude, drawn for each operation")


class AugmentConfig(Config):
    """What happens to training images; probability, alpha or null switch a part off."""

    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the image's area that a crop keeps")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    rand_augment: RandAugmentConfig | None = Field(RandAugmentConfig(), description="null: none")
    color_jitter: float = Field(0.0, ge=0, description="of brightness, contrast and saturation")
    erase: float = Field(0.25, ge=0, le=1, description="probability of erasing a rectangle (arXiv 1708.04896)")
    mixup: float = Field(0.8, ge=0, description="alpha of mixup (arXiv 1710.09412); 0: none")
    cutmix: float = Field(1.0, ge=0, description="alpha of CutMix (arXiv 1905.04899); 0: none; with both, either is")

    @field_validator("crop_scale")
    @classmethod
    def _is_a_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("expected two shares of the area, above 0 and up to 1, the smaller one first")
        return scale


class RandAugment(nn.Module):
    """torchvision's RandAugment, one operation at a time, each at a magnitude of its own."""

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
    """From a PIL image to the one to train on, input_size pixels on each side."""
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
    """From a PIL image to the one to score: shorter side to resize_size pixels, then the middle square of it."""
    return v2.Compose([v2.Resize(resize_size, interpolation=BICUBIC), v2.CenterCrop(input_size)])


class BatchAugment:
    """Erase rectangles of a batch of normalised images, and mix the images with one another."""

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
        """images: (B, 3, S, S) float, normalised, changed in place. labels: (B,) int64.

        Returns the images, and either the labels or, if images are mixed, the share of each class, (B, C) float."""
        for index in torch.nonzero(torch.rand(len(images)) < self.erase_probability).flatten().tolist():
            where = self.erase.make_params([images[index]])
            rows, columns = (slice(where[start], where[start] + where[size]) for start, size in ("ih", "jw"))
            if where["v"] is not None:  # else no rectangle was found that fits
                # Noise of the images' own device: torchvision's would come from the CPU, and a GPU wait for it.
                images[index, :, rows, columns] = torch.randn_like(images[index, :, rows, columns])
        return self.mix(images, labels) if self.mix else (images, labels)
