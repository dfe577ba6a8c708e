import functools

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.ops import box_convert, box_iou
from torchvision.transforms import v2

from data import normalize_images, to_layout
from detection.network.anchors import ANCHOR_SCALES, default_boxes
from detection.network.assignment.matching import match_anchors
from detection.network.backbones import BACKBONES, build_backbone
from detection.network.heads import FOREGROUND_PRIOR
from detection.network.loss import constant_predictor_loss, multibox_loss
from detection.network.necks import NECKS, build_neck
from detection.network.postprocess import PostprocessConfig, postprocess
from detection.network.ssd import SSD, ModelConfig, build_ssd
from engine.config import dump_config, load_config
from engine.optim import parameter_groups
from engine.strict_yaml import ConfigError


class TinyBackbone(nn.Module):
    """Six maps, of sides 16 to 1 for 64 pixels; a training-mode pass changes its BatchNorm and uses random numbers."""

    out_channels = (8,) * 6

    def __init__(self, dropout: float = 0.5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.levels = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(5))

    def forward(self, images):
        maps = [self.dropout(self.norm(self.stem(images)))]
        for level in self.levels:
            maps.append(level(maps[-1]))
        return maps


def tiny_ssd(num_classes: int = 3, backbone: nn.Module | None = None) -> SSD:
    backbone = backbone or TinyBackbone()
    neck = build_neck("none", backbone.out_channels)
    return SSD(backbone, neck, num_classes, input_size=64, anchor_scales=ANCHOR_SCALES["ssd"])


def noise(batch_size: int, side: int) -> torch.Tensor:
    """Return random pixel values, (batch_size, 3, side, side) float from 0 to 255."""
    return 255 * torch.rand(batch_size, 3, side, side)


def losses_of(model, images, boxes_xyxy, labels):
    """Return the classification and box loss per positive."""
    matched = match_anchors(boxes_xyxy, labels, model.anchors_cxcywh)
    sums = multibox_loss(*model(images), matched, boxes_xyxy, labels, model.anchors_cxcywh, negatives_per_positive=3)
    return sums["classification"] / sums["num_positives"], sums["box"] / sums["num_positives"]


# --- the network


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_rows_depend_on_the_image_at_their_anchor(memory_format):
    model = tiny_ssd().eval().to(memory_format=memory_format)
    for level in model.backbone.levels:
        nn.init.zeros_(level.weight)  # so that only the first map depends on the image
    images = torch.zeros(2, 3, 64, 64).contiguous(memory_format=memory_format)
    row, column = 11, 3  # of a cell of the first map, which is 4 pixels wide
    images[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
    for output in model(images):
        changed = (output[0] != output[1]).any(dim=1)
        centers = model.anchors_cxcywh[changed, :2] * 16  # in cells; a 3x3 kernel covers one cell on each side
        assert changed.sum() == 4 * 9
        assert (centers - torch.tensor([column + 0.5, row + 0.5])).abs().max() <= 1


def test_output_rows_come_from_the_channels_of_their_default_box():
    model = tiny_ssd(num_classes=3).eval()
    boxes_per_cell = 4
    nn.init.zeros_(model.box_head[0].weight)
    nn.init.zeros_(model.class_head[0].weight)
    with torch.no_grad():
        model.box_head[0].bias.copy_(torch.arange(boxes_per_cell * 4))
        model.class_head[0].bias.copy_(torch.arange(boxes_per_cell * 4))
    for output in model(noise(1, 64)):
        first_map = output[0, : boxes_per_cell * 16**2].view(16, 16, boxes_per_cell, 4)
        assert (first_map == torch.arange(boxes_per_cell * 4).view(boxes_per_cell, 4)).all()


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_untrained_head_predicts_background(num_classes):
    torch.manual_seed(0)
    _, class_logits = tiny_ssd(num_classes).eval()(noise(2, 64))
    foreground = class_logits.softmax(dim=-1)[..., 1:]
    assert foreground.sum(dim=-1).mean().item() == pytest.approx(FOREGROUND_PRIOR, rel=0.1)
    assert foreground.max() < 3 * FOREGROUND_PRIOR / num_classes


@pytest.mark.parametrize("shape", [(1, 3, 96, 96), (1, 3, 64, 96)])
def test_images_of_the_wrong_size_are_an_error(shape):
    height, width = shape[-2:]
    with pytest.raises(ValueError, match=f"{width}x{height} pixels.*64x64"):
        tiny_ssd()(torch.rand(shape))


def test_construction_keeps_running_statistics_module_modes_and_random_state():
    torch.manual_seed(0)
    tiny_ssd(backbone=TinyBackbone(dropout=0.0))
    next_number = torch.rand(1)
    torch.manual_seed(0)
    backbone = TinyBackbone()
    backbone.norm.eval()  # frozen, while the other modules are in training mode
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    model = tiny_ssd(backbone=backbone)
    assert torch.rand(1) == next_number
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    assert [name for name, module in model.named_modules() if not module.training] == ["backbone.norm"]


# --- normalisation


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_pixel_value_is_normalised_bitwise_as_by_normalize_images(dtype, channels_last):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = normalize_images(images, channels_last)
    result = tiny_ssd().normalize(to_layout(images, channels_last).to(dtype))
    assert torch.equal(result, expected)
    assert result.stride() == expected.stride()


def test_the_statistics_can_be_set_and_are_saved_with_the_weights():
    model, images = tiny_ssd().eval(), noise(1, 64)
    model.set_normalization((0.5, 0.4, 0.3), (0.1, 0.2, 0.5))
    expected = v2.Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.5))(images / 255)
    torch.testing.assert_close(model.normalize(images), expected)
    again = tiny_ssd().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images)[1], model(images)[1])


def test_images_are_normalised_in_float32_under_autocast():
    model, seen = tiny_ssd(), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert (seen[0].dtype, outputs[0].dtype) == (torch.float32, torch.bfloat16)


# --- the config and the assembled detector

cached_backbone = functools.cache(build_backbone)  # initialising a full-size trunk takes seconds


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_works_with_every_neck(name, neck):
    backbone = cached_backbone(name)
    neck = build_neck(neck, backbone.out_channels, out_channels=32)
    model = SSD(backbone, neck, num_classes=2, input_size=128, anchor_scales=ANCHOR_SCALES["ssd"]).eval()
    with torch.no_grad():
        box_deltas, class_logits = model(noise(1, 128))
    num_anchors = len(model.anchors_cxcywh)
    assert box_deltas.shape == (1, num_anchors, 4)
    assert class_logits.shape == (1, num_anchors, 3)
    assert "anchors_cxcywh" not in model.state_dict()


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("backbone", ["ResNet18SlimBackbone_B", "SwinSlimBackbone_B"])
def test_every_parameter_gets_a_gradient(backbone, neck):
    model = build_ssd(ModelConfig(backbone=backbone, neck=neck, neck_channels=32), num_classes=2)
    # One object of each level's box size, so that every level has a positive.
    sides = torch.tensor([0.1, 0.2, 0.375, 0.55, 0.725, 0.9])
    boxes_xyxy = box_convert(torch.stack([sides.new_full((6,), 0.5)] * 2 + [sides] * 2, dim=1), "cxcywh", "xyxy")
    boxes_xyxy, labels = boxes_xyxy.expand(2, 6, 4), torch.ones(2, 6, dtype=torch.int64)
    sum(losses_of(model, noise(2, 128), boxes_xyxy, labels)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_neck_repeats_changes_bifpn_only():
    names = {}
    for neck in NECKS:
        for repeats in (1, 2):
            config = ModelConfig(
                backbone="ResNet18SlimBackbone_B", neck=neck, neck_channels=8, neck_repeats=repeats, input_size=96
            )
            names[neck, repeats] = list(build_ssd(config, num_classes=2).state_dict())
    assert [neck for neck in NECKS if names[neck, 1] != names[neck, 2]] == ["bifpn"]


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_is_in_exactly_one_group_of_the_optimizer(name, neck):
    with torch.device("meta"):
        model = build_ssd(ModelConfig(backbone=name, neck=neck), num_classes=2)
    trunk = model.backbone.trunk
    groups = [group["params"] for group in parameter_groups(model, 0.05, trunk)]
    in_groups = [id(parameter) for group in groups for parameter in group]
    assert len(in_groups) == len(set(in_groups))
    assert set(in_groups) == {id(parameter) for parameter in model.parameters()}
    rest, in_trunk = {*map(id, groups[0] + groups[1])}, {*map(id, groups[2] + groups[3])}
    assert in_trunk == {id(parameter) for parameter in trunk.parameters()}
    heads = [parameter for part in (model.box_head, model.class_head, model.neck) for parameter in part.parameters()]
    assert rest > {id(parameter) for parameter in heads}
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {*map(id, groups[0] + groups[2])} == {id(parameter) for parameter in matrices}


def test_slim_model_overfits_one_batch():
    torch.manual_seed(0)
    model = build_ssd(ModelConfig(backbone="ResNet18SlimBackbone_B", input_size=96), num_classes=2)
    boxes_xyxy = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.2, 0.9, 0.7], [0.2, 0.5, 0.6, 0.9], [0.3, 0.3, 0.8, 0.6]])
    labels = torch.tensor([1, 2, 1, 2])
    images = 118 + 6 * torch.randn(4, 3, 96, 96)
    for image, (left, top, right, bottom), label in zip(images, (boxes_xyxy * 96).long(), labels, strict=True):
        image[label - 1, top:bottom, left:right] += 58  # class 1 is red, class 2 green
    boxes_xyxy, labels = boxes_xyxy[:, None], labels[:, None]

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(20):
        classification, box = losses_of(model, images, boxes_xyxy, labels)
        history.append((classification.item(), box.item()))
        optimizer.zero_grad()
        (classification + box).backward()
        optimizer.step()
    assert history[-1][0] < 0.1 * constant_predictor_loss([2, 2], negatives_per_positive=3)
    assert history[-1][1] < 0.2 * history[0][1]

    detections = postprocess(*model(images), model.anchors_cxcywh, **PostprocessConfig().model_dump())
    for of_image, box_xyxy, label in zip(detections, boxes_xyxy, labels, strict=True):
        assert of_image.labels[0] == label
        assert box_iou(of_image.boxes_xyxy[:1], box_xyxy) > 0.7


def test_weights_and_start_from_are_mutually_exclusive():
    with pytest.raises(ValidationError, match="mutually exclusive"):
        ModelConfig(weights="resnet50.pth", start_from="detector.safetensors")


@pytest.mark.parametrize("freeze", ["stem", "trunk"])
def test_random_weights_cannot_be_frozen(freeze):
    with pytest.raises(ValidationError, match=rf"freeze is {freeze}.*set weights or start_from"):
        ModelConfig(freeze=freeze)
    assert ModelConfig(freeze=freeze, weights="imagenet1k").freeze == freeze
    assert ModelConfig(freeze=freeze, start_from="detector.safetensors").freeze == freeze


SCALES = [0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1]


@pytest.mark.parametrize("scales", ["ssd", "ssd_coco", "auto", SCALES, tuple(SCALES)])
def test_a_config_with_anchor_scales_can_be_written_and_read(tmp_path, scales):
    path = tmp_path / "config.yaml"
    config = ModelConfig(anchor_scales=scales)
    path.write_text(dump_config(config))
    assert load_config(path, [], ModelConfig) == config
    if not isinstance(scales, str):
        assert config.anchor_scales == tuple(SCALES)
        assert all(type(scale) is float for scale in config.anchor_scales)
        assert load_config(path, [f"anchor_scales={SCALES}"], ModelConfig) == config


def test_the_default_boxes_of_listed_scales_are_used():
    model = build_ssd(ModelConfig(backbone="ResNet18SlimBackbone_B", input_size=96, anchor_scales=SCALES), 2)
    assert model.anchor_scales == tuple(SCALES)
    assert torch.equal(model.anchors_cxcywh, default_boxes(model.grid_sizes(96), SCALES))


def test_a_model_cannot_be_built_with_scales_that_are_still_to_be_fitted():
    with pytest.raises(ValueError, match=r"model\.anchor_scales auto: .*objects"):
        build_ssd(ModelConfig(backbone="ResNet18SlimBackbone_B", input_size=96, anchor_scales="auto"), 2)


@pytest.mark.parametrize(
    "scales",
    [
        "[]", "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]", "[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]",
        "[-0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]", "[0.1, 0.2, 0.2, 0.4, 0.5, 0.6, 0.7]",
        "[0.1, 0.3, 0.2, 0.4, 0.5, 0.6, 0.7]", "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.6]",
        "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, true]", "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, x]", "0.1", "null", "true",
        "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, .nan]", "[[0.1], 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]",
    ],
)  # fmt: skip
def test_invalid_anchor_scales_are_a_one_line_error_with_the_value_and_the_accepted_values(tmp_path, scales):
    path = tmp_path / "config.yaml"
    path.write_text("neck: none\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [f"anchor_scales={scales}"], ModelConfig)
    message = str(error.value)
    assert "\n" not in message
    value = scales.replace("x", '"x"').replace(".nan", "NaN")
    for text in ("anchor_scales", f"got {value}", "ssd_coco", "auto", "7 increasing numbers", "1.5"):
        assert text in message


def test_error_about_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValidationError) as error:
        ModelConfig(backbone="ResNet50", neck="fnp", anchor_scales="voc")
    for text in ("backbone 'ResNet50'", "ResNet50Backbone_A", "timm/NAME", "neck 'fnp'", "anchor_scales 'voc'"):
        assert text in str(error.value)
