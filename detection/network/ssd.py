"""The detector: backbone, neck and convolutional heads on every level (SSD, arXiv 1512.02325, figure 2)."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from data import IMAGENET_MEAN, IMAGENET_STD
from detection.network.anchors import ANCHOR_SCALES, AUTO, BOXES_PER_CELL, MAX_SCALE, default_boxes
from detection.network.backbones import BACKBONES, MIN_INPUT_SIZE, Freeze, backbone_spec, build_backbone
from detection.network.heads import ScoreFunction, init_heads, logits_per_box, make_head, make_towers, predict_rows
from detection.network.necks import NECKS, build_neck
from detection.network.timm_trunk import check_timm_name
from engine.compute.inference import evaluation_mode
from engine.config import Config
from engine.text import UnknownNameError
from weights.timm_weights import PREFIX


class ModelConfig(Config):
    """Architecture and initial weights of the detector."""

    backbone: str = Field("ResNet50Backbone_B", description="an entry of BACKBONES, or timm/NAME for a model of timm")
    neck: str = Field("none", description="an entry of NECKS")
    neck_channels: int = Field(256, gt=0, description="channels of every map after the neck; ignored if neck is none")
    neck_repeats: int = Field(3, ge=1, description="number of layers of the neck bifpn; ignored by the other necks")
    head_tower: Literal[0, 2, 4] = Field(
        0,
        description="number of 3x3 convolutions with GroupNorm before the last convolution of each head, separate for "
        "boxes and classes (decoupled head); levels with equal channels share them",
    )
    input_size: int | None = Field(
        None,
        ge=MIN_INPUT_SIZE,
        description="side of the square input in pixels; null: the backbone's reference size",
    )
    anchor_scales: str | tuple[float, ...] = Field(
        "ssd",
        description=f"sizes of the default boxes as fractions of the input side: {len(BOXES_PER_CELL) + 1} increasing "
        f"numbers, at most {MAX_SCALE:g}; auto, which fits them to the training objects when a run starts; or an entry "
        "of ANCHOR_SCALES",
    )
    drop_path_rate: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="stochastic depth rate of the last block of a trunk with LayerNorm (Swin, ConvNeXt, ...); other "
        "trunks (ResNet, EfficientNet, ...) ignore it",
    )
    weights: str | None = Field(
        None,
        description="initial weights of the trunk: imagenet1k, imagenet22k, a name from saved_weights/registry.yaml, "
        "timm or a tag of timm's model, a weights file, an experiment, or its published folder; null: random weights",
    )
    average_weights: bool = Field(True, description="load the moving average of the weights if the experiment has one")
    start_from: str | None = Field(
        None,
        description="a trained detector to fine-tune: an experiment, a published folder, or a weights file from an "
        "experiment or published folder; the classes may differ",
    )
    freeze: Freeze = Field(
        "none",
        description="part of the trunk that is not trained: nothing, the layers before the first stage, or all of it; "
        "its norm layers keep their statistics",
    )

    @field_validator("backbone", "neck")
    @classmethod
    def _check_name(cls, name: str, info: ValidationInfo) -> str:
        table = {"backbone": BACKBONES, "neck": NECKS}[info.field_name]
        if info.field_name == "backbone" and name.startswith(PREFIX):
            if find_spec("timm"):  # without timm, configs of finished runs can still be read
                check_timm_name(name.removeprefix(PREFIX))
        elif name not in table:
            raise UnknownNameError(
                info.field_name, name, [*table, "timm/NAME"] if info.field_name == "backbone" else table
            )
        return name

    @field_validator("anchor_scales", mode="before")  # before, so that an error is one line, not one per type
    @classmethod
    def _check_anchor_scales(cls, scales: Any) -> str | tuple[float, ...]:
        if isinstance(scales, str):
            if scales not in (*ANCHOR_SCALES, AUTO):
                raise UnknownNameError("anchor_scales", scales, [*ANCHOR_SCALES, AUTO, "a list of numbers"])
            return scales
        count = len(BOXES_PER_CELL) + 1
        is_valid = (
            isinstance(scales, list | tuple)
            and len(scales) == count
            and all(isinstance(scale, int | float) and not isinstance(scale, bool) for scale in scales)
            and all(low < high for low, high in pairwise([0, *scales]))
            and scales[-1] <= MAX_SCALE
        )
        if not is_valid:
            names = ", ".join([*ANCHOR_SCALES, AUTO])
            raise ValueError(f"expected one of {names}, or {count} increasing numbers > 0 and <= {MAX_SCALE:g}")
        return tuple(map(float, scales))

    @model_validator(mode="after")
    def _check_initial_weights(self) -> Self:
        if self.weights is not None and self.start_from is not None:
            raise ValueError("weights and start_from are mutually exclusive: set one to null")
        return self

    @model_validator(mode="after")
    def _check_freeze(self) -> Self:
        if self.freeze != "none" and self.weights is None and self.start_from is None:
            raise ValueError(
                f"freeze is {self.freeze}, but the trunk has random weights, which must be trained: set weights or "
                "start_from, or set freeze to none"
            )
        return self


class SSD(nn.Module):
    """Single-shot detector: on each of six feature maps, one head predicts boxes and one predicts classes.

    It normalises the images itself, so that training, evaluation and every other use have the same statistics.

    backbone: module that maps images (B, 3, S, S) to a list of six feature maps, high to low resolution.
    neck: module that maps this list to a list of six maps; `neck.out_channels` lists their channels.
    num_classes: number of foreground classes, without background.
    input_size: S, in pixels. anchor_scales: seven increasing numbers, see detection.network.anchors.default_boxes.
    head_tower: number of convolutions before the last one of each head.
    score_function: how class logits become scores, see heads.class_scores.
    Buffers: anchors_cxcywh (A, 4) holds the default boxes, in the same order as the rows of the outputs. pixel_mean and
    pixel_std (3,) hold the statistics for normalising, of pixel values from 0 to 1; see `set_normalization`."""

    anchors_cxcywh: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    # Weights that a file may lack, and the values that replace them: older files do not contain statistics.
    optional_weights: ClassVar = {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        num_classes: int,
        input_size: int,
        anchor_scales: Sequence[float],
        head_tower: int = 0,
        score_function: ScoreFunction = "softmax",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.num_classes = num_classes
        self.input_size = input_size
        self.anchor_scales = tuple(anchor_scales)
        self.score_function = score_function
        self.logits_per_box = logits_per_box(num_classes, score_function)
        self.box_head = make_head(neck.out_channels, 4)
        self.class_head = make_head(neck.out_channels, self.logits_per_box)
        self.box_towers = make_towers(neck.out_channels, head_tower)
        self.class_towers = make_towers(neck.out_channels, head_tower)
        towers = (self.box_towers, self.class_towers)
        init_heads(self.box_head, self.class_head, towers, num_classes, score_function)
        # Not saved in checkpoints, because the anchors follow from the backbone, the input size and the scales.
        grid_sizes = self.grid_sizes(input_size)
        self.cells_per_level = tuple(rows * columns for rows, columns in grid_sizes)
        self.register_buffer("anchors_cxcywh", default_boxes(grid_sizes, anchor_scales), persistent=False)
        for name, values in self.optional_weights.items():
            self.register_buffer(name, torch.tensor(values))
        self.register_load_state_dict_pre_hook(_add_optional_weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict a box and class logits for every anchor.

        images: (B, 3, S, S) RGB pixel values from 0 to 255, uint8 or float, not normalised.
        Returns box_deltas (B, A, 4), to be decoded by boxes.decode_boxes, and class_logits. For softmax scores, the
        logits are (B, A, num_classes + 1) with background first; for sigmoid scores, they are (B, A, num_classes).
        Raises ValueError if S is not input_size."""
        if images.shape[-2:] != (self.input_size, self.input_size):
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {width}x{height} pixels: expected {self.input_size}x{self.input_size}, "
                "the model's input_size; resize the images or build the model with their size"
            )
        maps = self.neck(self.backbone(self.normalize(images)))  # six maps (B, C, H, W)
        box_deltas = predict_rows(maps, self.box_towers, self.box_head, 4)
        return box_deltas, predict_rows(maps, self.class_towers, self.class_head, self.logits_per_box)

    def normalize(self, images: Tensor) -> Tensor:
        """Subtract the mean of the pixel values, and divide by their standard deviation.

        images: as in `forward`. Returns (B, 3, S, S) float32. With ImageNet's statistics, the result is bitwise equal
        to that of data.normalize_images, so that earlier scores can be reproduced."""
        mean = self.pixel_mean.view(3, 1, 1) * 255
        std = self.pixel_std.view(3, 1, 1) * 255
        return (images.float() - mean) / std

    def set_normalization(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Set the statistics that pretrained weights expect, of red, green and blue, for pixel values from 0 to 1."""
        self.pixel_mean.copy_(torch.as_tensor(mean))
        self.pixel_std.copy_(torch.as_tensor(std))

    @torch.no_grad()
    def grid_sizes(self, input_size: int) -> list[tuple[int, int]]:
        """Run a forward pass on a blank image of this size, and return (rows, columns) of each map."""
        with evaluation_mode(self):  # so that the pass uses no random numbers and changes no running statistics
            maps = self.neck(self.backbone(torch.zeros(1, 3, input_size, input_size)))
        return [tuple(m.shape[-2:]) for m in maps]


def _add_optional_weights(model: SSD, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Add the `optional_weights` that a state dict lacks, before it is loaded into the model."""
    for name, values in model.optional_weights.items():
        weights.setdefault(prefix + name, torch.tensor(values))


def build_ssd(config: ModelConfig, num_classes: int, score_function: ScoreFunction = "softmax") -> SSD:
    """Build the detector described by `config`, with random weights.

    num_classes: without background. score_function: that of the loss, see LossConfig.score_function.
    Raises ValueError if `config.anchor_scales` is auto, which detection.task replaces by numbers."""
    scales = config.anchor_scales
    if scales == AUTO:
        raise ValueError("model.anchor_scales auto: there are no training objects to fit; set numbers or a preset")
    input_size = config.input_size or backbone_spec(config.backbone).input_size
    backbone = build_backbone(config.backbone, config.drop_path_rate, config.freeze, input_size)
    neck = build_neck(config.neck, backbone.out_channels, config.neck_channels, config.neck_repeats)
    return SSD(
        backbone, neck, num_classes, input_size, ANCHOR_SCALES.get(scales, scales), config.head_tower, score_function
    )
