"""The heads of the detector: towers of convolutions, the initial probabilities, and the two score functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detection.network.anchors import ANCHOR_SCALES, BOXES_PER_CELL
from detection.network.heads import FOREGROUND_PRIOR, class_scores, logits_per_box, num_groups, tower_depth
from detection.network.necks import build_neck
from detection.network.ssd import SSD, ModelConfig, build_ssd

TOWERS = ("box_towers", "class_towers")
SLIM = {"backbone": "ResNet18SlimBackbone_B", "input_size": 96}


class Pyramid(nn.Module):
    """Six maps of sides 8 to 1 with unequal channels, for images of 64 pixels. It has no parameters."""

    out_channels = (8, 8, 32, 20, 20, 8)

    def forward(self, images):
        sides = (8, 4, 3, 2, 1, 1)
        return [
            F.adaptive_avg_pool2d(images, side).repeat(1, -(-channels // 3), 1, 1)[:, :channels]
            for side, channels in zip(sides, self.out_channels, strict=True)
        ]


def pyramid_ssd(head_tower: int, score_function: str = "softmax", num_classes: int = 3) -> SSD:
    torch.manual_seed(0)
    backbone = Pyramid()
    neck = build_neck("none", backbone.out_channels)
    return SSD(backbone, neck, num_classes, 64, ANCHOR_SCALES["ssd"], head_tower, score_function)


def noise(batch_size: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 255 * torch.rand(batch_size, 3, side, side, generator=generator)


def randomise(model: SSD) -> None:
    """Replace all weights by random numbers, so that no weight or bias has a special value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)


# --- without a tower


def test_the_default_head_draws_the_random_numbers_of_one_convolution_per_level():
    model = pyramid_ssd(head_tower=0)
    following = torch.rand(1)
    torch.manual_seed(0)
    levels = list(zip(Pyramid.out_channels, BOXES_PER_CELL, strict=True)) * 2  # 4 outputs per box in either head
    heads = [nn.Conv2d(channels, boxes * 4, kernel_size=3) for channels, boxes in levels]
    for expected, convolution in zip(heads, [*model.box_head, *model.class_head], strict=True):
        assert torch.equal(nn.init.normal_(expected.weight, std=0.01), convolution.weight)
    assert torch.equal(following, torch.rand(1))


def test_the_default_head_adds_no_weights():
    names = {f"{kind}.{level}.{weight}" for kind in ("box_head", "class_head") for level in range(6)
             for weight in ("weight", "bias")}  # fmt: skip
    assert set(pyramid_ssd(head_tower=0).state_dict()) == names | {"pixel_mean", "pixel_std"}


# --- towers


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("head_tower", [0, 2, 4])
def test_a_tower_of_convolutions_group_norms_and_relus_is_added_to_its_input(head_tower, score_function):
    model, images = pyramid_ssd(head_tower, score_function).eval(), noise(2, 64)
    randomise(model)
    weights, maps = model.state_dict(), model.backbone(model.normalize(images))
    columns = {"box": 4, "class": {"softmax": 4, "sigmoid": 3}[score_function]}
    for kind, output in zip(columns, model(images), strict=True):
        rows = []
        for level, x in enumerate(maps):
            channels, shortcut = x.shape[1], x if head_tower else 0
            for layer in range(head_tower):
                tower = f"{kind}_towers.{channels}"
                x = F.conv2d(x, weights[f"{tower}.{3 * layer}.weight"], padding=1)
                scale, shift = (weights[f"{tower}.{3 * layer + 1}.{name}"] for name in ("weight", "bias"))
                x = F.relu(F.group_norm(x, {8: 1, 20: 2, 32: 4}[channels], scale, shift))
            x = F.conv2d(
                x + shortcut, *(weights[f"{kind}_head.{level}.{name}"] for name in ("weight", "bias")), padding=1
            )
            for row in range(x.shape[2]):
                for column in range(x.shape[3]):
                    rows.append(x[:, :, row, column].view(2, -1, columns[kind]))
        torch.testing.assert_close(output, torch.cat(rows, dim=1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("depth", [2, 4])
def test_levels_with_equal_channels_share_a_tower_and_boxes_and_classes_do_not(depth):
    model = pyramid_ssd(depth)
    shared = build_ssd(ModelConfig(**SLIM, neck="fpn", neck_channels=16, head_tower=depth), num_classes=2)
    for towers, sizes in ((model, [8, 32, 20]), (shared, [16])):
        count = sum(depth * (9 * channels**2 + 2 * channels) for channels in sizes)
        parameters = [{id(parameter) for parameter in getattr(towers, name).parameters()} for name in TOWERS]
        assert [list(getattr(towers, name)) for name in TOWERS] == [[str(channels) for channels in sizes]] * 2
        for name in TOWERS:
            assert sum(parameter.numel() for parameter in getattr(towers, name).parameters()) == count
        assert not parameters[0] & parameters[1]


@pytest.mark.parametrize(("neck", "score_function"), [("none", "sigmoid"), ("fpn", "softmax")])
def test_every_parameter_of_a_head_gets_a_gradient(neck, score_function):
    config = ModelConfig(**SLIM, neck=neck, neck_channels=16, head_tower=4)
    model = build_ssd(config, num_classes=2, score_function=score_function)
    sum(output.square().sum() for output in model(noise(2, 96))).backward()
    heads = [name for name, _ in model.named_parameters() if "_towers." in name or "_head." in name]
    assert len(heads) >= 2 * (4 * 3 + 6 * 2)
    for name in heads:
        gradient = model.get_parameter(name).grad
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(256, 32), (512, 32), (1024, 32), (128, 16), (96, 8), (64, 8), (40, 4), (24, 2), (20, 2), (17, 1), (8, 1), (4, 1)],
)
def test_groups_are_as_many_as_32_groups_of_8_channels_allow(channels, groups):
    assert num_groups(channels) == groups


@pytest.mark.parametrize("channels", [8, 16, 24, 64, 96, 256])
def test_a_map_of_one_cell_keeps_different_values_after_the_norm(channels):
    norm = nn.GroupNorm(num_groups(channels), channels)
    values = norm(torch.randn(1, channels, 1, 1, generator=torch.Generator().manual_seed(0))).abs().flatten()
    assert len(values.round(decimals=3).unique()) > channels // 2


def test_a_trunk_of_timm_without_neck_has_a_tower_for_each_number_of_channels():
    pytest.importorskip("timm")
    config = ModelConfig(backbone="timm/tf_efficientnet_lite0", input_size=96, head_tower=2)
    model = build_ssd(config, num_classes=2, score_function="sigmoid")
    assert list(model.box_towers) == ["40", "112", "320", "512", "256"]
    for mode in (True, False):
        box_deltas, class_logits = model.train(mode)(noise(2 if mode else 1, 96))
        assert box_deltas.shape[1:] == (len(model.anchors_cxcywh), 4)
        assert class_logits.shape[1:] == (len(model.anchors_cxcywh), 2)


@pytest.mark.parametrize("depth", [0, 2, 4])
def test_the_depth_of_the_towers_is_known_from_the_weights(depth):
    assert tower_depth(pyramid_ssd(depth).state_dict()) == depth


# --- initial probabilities and score functions


@pytest.mark.parametrize("num_classes", [1, 80])
@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("head_tower", [0, 2, 4])
def test_an_untrained_head_starts_at_the_foreground_prior(head_tower, score_function, num_classes):
    model = pyramid_ssd(head_tower, score_function, num_classes)
    with torch.no_grad():
        scores = class_scores(model.eval()(noise(2, model.input_size))[1], score_function)
    assert scores.shape[-1] == num_classes
    foreground = scores.sum(dim=-1) if score_function == "softmax" else scores  # each class has its own probability
    assert foreground.mean().item() == pytest.approx(FOREGROUND_PRIOR, rel=0.2)
    assert foreground.max() < 10 * FOREGROUND_PRIOR


def test_last_convolutions_start_small_and_towers_with_the_variance_of_kaiming_initialisation():
    model = pyramid_ssd(4)
    for convolution in (*model.box_head, *model.class_head):
        assert convolution.weight.std().item() == pytest.approx(0.01, rel=0.15)
    towers = [module for name in TOWERS for module in getattr(model, name).modules() if isinstance(module, nn.Conv2d)]
    assert len(towers) == 2 * 3 * 4
    for convolution in towers:
        expected = (2 / (9 * convolution.in_channels)) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.15)


def test_sigmoid_scores_of_a_zero_input_are_exactly_the_prior():
    model = pyramid_ssd(2, "sigmoid")
    for convolution in model.class_head:
        nn.init.zeros_(convolution.weight)
    scores = class_scores(model(noise(1, 64))[1], "sigmoid")
    torch.testing.assert_close(scores, torch.full_like(scores, FOREGROUND_PRIOR))


def test_softmax_of_two_logits_equals_the_sigmoid_of_their_difference():
    logits = torch.tensor([[0.0, 2.0], [0.0, -1.0]])  # background first
    torch.testing.assert_close(class_scores(logits, "softmax"), class_scores(logits[:, 1:], "sigmoid"))
    assert (logits_per_box(80, "softmax"), logits_per_box(80, "sigmoid")) == (81, 80)
