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

# Initial probability that an anchor has any foreground class, as predicted by the untrained class head.
FOREGROUND_PRIOR = 0.01


class ModelConfig(Config):
    """Architecture and initial weights of the detector."""

    backbone: str = Field("ResNet50Backbone_B", description="an entry of BACKBONES")
    neck: str = Field("none", description="an entry of NECKS")
    neck_channels: int = Field(256, gt=0, description="channels of every map after the neck; ignored if neck is none")
    input_size: int | None = Field(
        None,
        ge=MIN_INPUT_SIZE,
        description="side of the square input in pixels; null: the backbone's reference size",
    )
    anchor_scales: str = Field("ssd", description="an entry of ANCHOR_SCALES, the sizes of the default boxes")
    drop_path_rate: float = Field(0.2, ge=0, lt=1, description="stochastic depth rate of a Swin trunk's last block")
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

    @field_validator("backbone", "neck", "anchor_scales")
    @classmethod
    def _check_name(cls, name: str, info: ValidationInfo) -> str:
        table = {"backbone": BACKBONES, "neck": NECKS, "anchor_scales": ANCHOR_SCALES}[info.field_name]
        if name not in table:
            raise UnknownNameError(info.field_name, name, table)
        return name

    @model_validator(mode="after")
    def _check_initial_weights(self) -> Self:
        if self.weights is not None and self.start_from is not None:
            raise ValueError("weights and start_from are mutually exclusive: set one to null")
        return self


class SSD(nn.Module):
    """Single-shot detector: on each of six feature maps, one 3x3 convolution predicts boxes and one predicts classes.

    backbone: module that maps images (B, 3, S, S) to a list of six feature maps, high to low resolution.
    neck: module that maps this list to a list of six maps; `neck.out_channels` lists their channels.
    num_classes: number of foreground classes, without background.
    input_size: S, in pixels. anchor_scales: a value of detection.network.anchors.ANCHOR_SCALES.
    The buffer anchors_cxcywh (A, 4) holds the default boxes, in the same order as the rows of the outputs."""

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
        self._init_heads()
        # Not saved in checkpoints, because the anchors follow from the backbone, the input size and the scales.
        self.register_buffer(
            "anchors_cxcywh", default_boxes(self.grid_sizes(input_size), anchor_scales), persistent=False
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict a box and class logits for every anchor.

        images: (B, 3, S, S) float, normalised (see data.normalize_images).
        Returns box_deltas (B, A, 4), to be decoded by boxes.decode_boxes, and class_logits (B, A, num_classes + 1),
        before softmax, with background first. Raises ValueError if S is not input_size."""
        if images.shape[-2:] != (self.input_size, self.input_size):
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {width}x{height} pixels: expected {self.input_size}x{self.input_size}, "
                "the model's input_size; resize the images or build the model with their size"
            )
        maps = self.neck(self.backbone(images))  # six maps (B, C, H, W)
        box_deltas = [_rows(head(m), 4) for head, m in zip(self.box_head, maps, strict=True)]
        class_logits = [_rows(head(m), self.num_classes + 1) for head, m in zip(self.class_head, maps, strict=True)]
        return torch.cat(box_deltas, dim=1), torch.cat(class_logits, dim=1)

    @torch.no_grad()
    def _init_heads(self) -> None:
        """Initialise the heads to predict background with probability 1 - FOREGROUND_PRIOR at every anchor.

        Otherwise, if the trunk has random weights, the loss never falls below loss.constant_predictor_loss. As in
        RetinaNet (arXiv 1708.02002, sections 3.3 and 4.1), weights are drawn from N(0, 0.01^2) and biases are zero.
        The exception is the background bias b, which solves e^b / (e^b + num_classes) = 1 - FOREGROUND_PRIOR."""
        for convolution in [*self.box_head, *self.class_head]:
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)
        background_bias = math.log(self.num_classes * (1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR)
        for convolution in self.class_head:
            convolution.bias[:: self.num_classes + 1] = background_bias

    @torch.no_grad()
    def grid_sizes(self, input_size: int) -> list[tuple[int, int]]:
        """Run a forward pass on a blank image of this size, and return (rows, columns) of each map."""
        with evaluation_mode(self):  # so that the pass uses no random numbers and changes no running statistics
            maps = self.neck(self.backbone(torch.zeros(1, 3, input_size, input_size)))
        return [tuple(m.shape[-2:]) for m in maps]


def _head(in_channels: Sequence[int], outputs_per_box: int) -> nn.ModuleList:
    """Create one 3x3 convolution per level, with outputs_per_box output channels for each default box of a cell."""
    return nn.ModuleList(
        nn.Conv2d(channels, boxes * outputs_per_box, kernel_size=3, padding=1)
        for channels, boxes in zip(in_channels, BOXES_PER_CELL, strict=True)
    )


def _rows(head_map: Tensor, outputs_per_box: int) -> Tensor:
    """Reshape a head's output (B, boxes * outputs, H, W) to one row per anchor, in the order of default_boxes."""
    return head_map.permute(0, 2, 3, 1).reshape(head_map.shape[0], -1, outputs_per_box)  # (B, H * W * boxes, outputs)


def build_ssd(config: ModelConfig, num_classes: int) -> SSD:
    """Build the detector described by `config`, with random weights."""
    backbone = build_backbone(config.backbone, config.drop_path_rate)
    neck = build_neck(config.neck, backbone.out_channels, config.neck_channels)
    input_size = config.input_size or BACKBONES[config.backbone].input_size
    return SSD(backbone, neck, num_classes, input_size, ANCHOR_SCALES[config.anchor_scales])
