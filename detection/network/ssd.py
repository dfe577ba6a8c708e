"""The detector: backbone, neck and one convolutional head per level (SSD, arXiv 1512.02325, figure 2)."""

import math
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from detection.network.anchors import ANCHOR_SCALES, BOXES_PER_CELL, default_boxes
from detection.network.backbones import BACKBONES, MIN_INPUT_SIZE, build_backbone
from detection.network.necks import NECKS, build_neck
from engine.compute.inference import evaluation_mode
from engine.config import Config
from engine.text import UnknownNameError

# Share of the probability that an untrained head gives to all foreground classes together.
FOREGROUND_PRIOR = 0.01


class ModelConfig(Config):
    """Which detector to build."""

    backbone: str = Field("ResNet50Backbone_B", description="row of detection.network.backbones.BACKBONES")
    neck: str = Field("none", description="row of detection.network.necks.NECKS")
    neck_channels: int = Field(256, gt=0, description="channels of every map after the neck; none keeps the backbone's")
    input_size: int | None = Field(
        None,
        ge=MIN_INPUT_SIZE,
        description="side in pixels of the square input; null takes the backbone's reference size",
    )
    anchor_scales: str = Field("ssd", description="row of detection.network.anchors.ANCHOR_SCALES")
    drop_path_rate: float = Field(0.2, ge=0, lt=1, description="stochastic depth of a Swin trunk's last block")
    weights: str | None = Field(
        None,
        description="of the trunk, to start from: imagenet1k, imagenet22k, a name of saved_weights/registry.yaml, a "
        "file, an experiment that trained a classifier or its published folder; null: random weights",
    )
    average_weights: bool = Field(True, description="of such an experiment, its moving average if it kept one")
    start_from: str | None = Field(
        None,
        description="a trained detector, of these or of other classes, to fine-tune: an experiment, a published "
        "folder, or a file of either's weights",
    )

    @field_validator("backbone", "neck", "anchor_scales")
    @classmethod
    def _names_a_row(cls, name: str, info: ValidationInfo) -> str:
        table = {"backbone": BACKBONES, "neck": NECKS, "anchor_scales": ANCHOR_SCALES}[info.field_name]
        if name not in table:
            raise UnknownNameError(info.field_name, name, table)
        return name

    @model_validator(mode="after")
    def _starts_from_one_file(self) -> Self:
        if self.weights is not None and self.start_from is not None:
            raise ValueError("weights and start_from exclude each other: set one to null")
        return self


class SSD(nn.Module):
    """Single-shot detector: six maps, on each a 3x3 convolution for the boxes and one for the classes.

    backbone: (B, 3, S, S) float -> list of six maps, high to low resolution. neck: list of maps -> list of maps;
    `neck.out_channels` lists their channels. num_classes: foreground classes; the logits have one more, 0 = background.
    input_size: S, pixels. anchor_scales: see detection.network.anchors.ANCHOR_SCALES.
    Buffer anchors_cxcywh (A, 4): the default boxes, in the order of the outputs' rows."""

    anchors_cxcywh: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        num_classes: int,
        input_size: int,
        anchor_scales: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.num_classes = num_classes
        self.input_size = input_size
        self.box_head = _head(neck.out_channels, 4)
        self.class_head = _head(neck.out_channels, num_classes + 1)
        self._favour_background()
        # Known from the backbone and the input size: no checkpoint needs to carry them.
        self.register_buffer(
            "anchors_cxcywh", default_boxes(self.grid_sizes(input_size), anchor_scales), persistent=False
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict a box and its class for every anchor.

        images: (B, 3, S, S) float, normalised (data.normalize_images).
        Returns box_deltas (B, A, 4), for boxes.decode_boxes, and class_logits (B, A, num_classes + 1), before
        softmax. Raises ValueError if the images have another size than the anchors were made for.
        """
        if images.shape[-2:] != (self.input_size, self.input_size):
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {width}x{height} pixels: expected {self.input_size}x{self.input_size}, "
                "the model's input_size; resize the images or build the model for their size"
            )
        maps = self.neck(self.backbone(images))  # six times (B, C, H, W)
        box_deltas = [_rows(head(m), 4) for head, m in zip(self.box_head, maps, strict=True)]
        class_logits = [_rows(head(m), self.num_classes + 1) for head, m in zip(self.class_head, maps, strict=True)]
        return torch.cat(box_deltas, dim=1), torch.cat(class_logits, dim=1)

    @torch.no_grad()
    def _favour_background(self) -> None:
        """Start with every anchor as background with probability 1 - FOREGROUND_PRIOR.

        Otherwise training on a random trunk never leaves the plateau of loss.constant_predictor_loss. As in RetinaNet
        (arXiv 1708.02002, sections 3.3 and 4.1): weights N(0, 0.01), biases 0, except for the background's b, which
        solves e^b / (e^b + num_classes) = 1 - prior."""
        for convolution in [*self.box_head, *self.class_head]:
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)
        background_bias = math.log(self.num_classes * (1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR)
        for convolution in self.class_head:
            convolution.bias[:: self.num_classes + 1] = background_bias

    @torch.no_grad()
    def grid_sizes(self, input_size: int) -> list[tuple[int, int]]:
        """Return (rows, columns) of each map, as measured on a blank image of this side, without a trace."""
        with evaluation_mode(self):  # nothing is drawn at random and no running statistics move
            maps = self.neck(self.backbone(torch.zeros(1, 3, input_size, input_size)))
        return [tuple(m.shape[-2:]) for m in maps]


def _head(in_channels: Sequence[int], outputs_per_box: int) -> nn.ModuleList:
    """Make one 3x3 convolution per level, with outputs_per_box channels for each of a cell's default boxes."""
    return nn.ModuleList(
        nn.Conv2d(channels, boxes * outputs_per_box, kernel_size=3, padding=1)
        for channels, boxes in zip(in_channels, BOXES_PER_CELL, strict=True)
    )


def _rows(head_map: Tensor, outputs_per_box: int) -> Tensor:
    """Flatten a head's map (B, boxes * outputs, H, W) to one row per anchor: by row, column, box, as the anchors."""
    return head_map.permute(0, 2, 3, 1).reshape(head_map.shape[0], -1, outputs_per_box)  # (B, H * W * boxes, outputs)


def build_ssd(config: ModelConfig, num_classes: int) -> SSD:
    """Wire the detector that a config names, with random weights."""
    backbone = build_backbone(config.backbone, config.drop_path_rate)
    neck = build_neck(config.neck, backbone.out_channels, config.neck_channels)
    input_size = config.input_size or BACKBONES[config.backbone].input_size
    return SSD(backbone, neck, num_classes, input_size, ANCHOR_SCALES[config.anchor_scales])
