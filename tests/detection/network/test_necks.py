import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from detection.network.necks import NECKS, BiFPN, FusionNode, build_neck
from engine.optim import parameter_groups

NECKS_WITH_CHANNELS = [name for name in NECKS if name != "none"]
CHANNELS = [12, 16, 20, 16, 8, 8]
SIDES = {
    "300": [38, 19, 10, 5, 3, 1],
    "336": [42, 21, 11, 6, 3, 1],
    "128": [16, 8, 4, 2, 1, 1],
    "512": [64, 32, 16, 8, 4, 1],
}


def random_maps(sides: list[int], batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, c, side, side) for c, side in zip(CHANNELS, sides, strict=True)]


def make_transparent(neck: nn.Module) -> nn.Module:
    """Set every convolution to sum its input channels at the centre of its kernel."""
    for conv in neck.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.zeros_(conv.weight)
            centre = conv.kernel_size[0] // 2
            conv.weight.data[:, :, centre, centre] = 1.0
    return neck


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("name", NECKS_WITH_CHANNELS)
def test_neck_keeps_sides_and_makes_channels_equal(name, sides):
    neck, inputs = build_neck(name, CHANNELS, out_channels=32), random_maps(sides)
    before = list(inputs)
    maps = neck(inputs)
    assert neck.out_channels == [32] * 6
    assert [tuple(x.shape) for x in maps] == [(2, 32, side, side) for side in sides]
    assert all(a is b for a, b in zip(inputs, before, strict=True))  # the list is not modified in place


def test_no_neck_returns_its_inputs():
    neck = build_neck("none", CHANNELS)
    maps = random_maps(SIDES["128"])
    assert all(a is b for a, b in zip(neck(maps), maps, strict=True))
    assert neck.out_channels == CHANNELS
    assert not list(neck.parameters())


@pytest.mark.parametrize("name", ["fpn", "pan", "dense_fpn", "bifpn"])
def test_convolutions_start_xavier_uniform_with_zero_bias(name):
    torch.manual_seed(0)
    for conv in build_neck(name, [64] * 6, out_channels=64).modules():
        if isinstance(conv, nn.Conv2d):
            fan = (conv.in_channels + conv.out_channels) // conv.groups * conv.kernel_size[0] ** 2
            assert conv.weight.abs().max().item() == pytest.approx((6 / fan) ** 0.5, rel=0.02)
            assert conv.bias is None or not conv.bias.any()


# -------------------------------------------------------------------------------------------- small examples


def test_pan_adds_a_bottom_up_path_to_fpn():
    neck = make_transparent(build_neck("pan", [1, 1, 1], out_channels=1))
    maps = [torch.randn(1, 1, 5, 5), torch.randn(1, 1, 3, 3), torch.randn(1, 1, 1, 1)]
    fpn = make_transparent(build_neck("fpn", [1, 1, 1], out_channels=1))(maps)
    fine, middle, coarse = neck(maps)
    torch.testing.assert_close(fine, fpn[0])
    torch.testing.assert_close(middle, fpn[1] + fine[..., ::2, ::2])
    # The strided convolution maps 3 cells to 2. Resizing 2 to the coarsest map's 1 cell takes their mean.
    torch.testing.assert_close(coarse, fpn[2] + middle[..., ::2, ::2].mean(dim=(2, 3), keepdim=True))


def test_dense_fpn_fuses_all_coarser_fused_maps():
    neck = make_transparent(build_neck("dense_fpn", [1, 1, 1], out_channels=1))
    maps = [torch.full((1, 1, side, side), value) for side, value in ((4, 1.0), (2, 10.0), (1, 100.0))]
    fine, middle, coarse = neck(maps)
    assert coarse.unique().tolist() == [100.0]
    assert middle.unique().tolist() == [110.0]  # 10 + 100
    assert fine.unique().tolist() == [211.0]  # 1 + 110 + 100


# ------------------------------------------------------------------------- BiFPN, against plain loops over all pixels


def source_pixels(target: int, side: int, target_side: int) -> list[tuple[int, float]]:
    """Return the source pixels and their shares, for linear resizing with pixel centres at half-integers."""
    position = min(max((target + 0.5) * side / target_side - 0.5, 0), side - 1)
    before = math.floor(position)
    return [(before, 1 - (position - before)), (min(before + 1, side - 1), position - before)]


def resize_by_loops(x: np.ndarray, side: int) -> np.ndarray:
    """Resize x (C, H, H) bilinearly to (C, side, side)."""
    resized = np.zeros((len(x), side, side))
    for channel, row, column in np.ndindex(resized.shape):
        for source_row, row_share in source_pixels(row, x.shape[1], side):
            for source_column, column_share in source_pixels(column, x.shape[1], side):
                resized[channel, row, column] += row_share * column_share * x[channel, source_row, source_column]
    return resized


def pool_by_loops(x: np.ndarray) -> np.ndarray:
    """Take the maximum of the 3x3 pixels around every second pixel of x (C, H, H)."""
    side = len(range(0, x.shape[1], 2))
    pooled = np.empty((len(x), side, side))
    for channel, row, column in np.ndindex(pooled.shape):
        rows, columns = (slice(max(2 * index - 1, 0), 2 * index + 2) for index in (row, column))
        pooled[channel, row, column] = x[channel, rows, columns].max()
    return pooled


def pointwise_by_loops(x: np.ndarray, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> np.ndarray:
    """Apply a 1x1 convolution, then BatchNorm with its stored statistics, to x (C, H, H)."""
    result = np.empty((conv.out_channels, *x.shape[1:]))
    for channel, row, column in np.ndindex(result.shape):
        value = sum(conv.weight[channel, c, 0, 0].item() * x[c, row, column] for c in range(len(x)))
        value = (value - norm.running_mean[channel].item()) / math.sqrt(norm.running_var[channel].item() + norm.eps)
        result[channel, row, column] = norm.weight[channel].item() * value + norm.bias[channel].item()
    return result


def node_by_loops(node: FusionNode, *maps: np.ndarray) -> np.ndarray:
    """Compute (sum_i w_i I_i) / (sum_j w_j + 0.0001) with w = max(weight, 0); then SiLU, convolution, BatchNorm."""
    weights = [max(weight, 0) for weight in node.weights.tolist()]
    fused = sum(weight * x for weight, x in zip(weights, maps, strict=True)) / (sum(weights) + 0.0001)
    activated = fused / (1 + np.exp(-fused))
    padded, filtered = np.pad(activated, ((0, 0), (1, 1), (1, 1))), np.zeros_like(activated)
    for channel, row, column in np.ndindex(filtered.shape):
        for y, x in np.ndindex(3, 3):
            filtered[channel, row, column] += (
                node.depthwise.weight[channel, 0, y, x].item() * padded[channel, row + y, column + x]
            )
    return pointwise_by_loops(filtered, node.pointwise, node.norm)


def bifpn_by_loops(neck: BiFPN, maps: list[np.ndarray]) -> list[np.ndarray]:
    """Apply the neck to four maps (C, H, H) of one image. The names are those of figure 2 (d) of the paper."""
    p3, p4, p5, p6 = (pointwise_by_loops(x, *lateral) for lateral, x in zip(neck.laterals, maps, strict=True))
    sides = [x.shape[1] for x in maps]
    for layer in neck.layers:
        p5_td = node_by_loops(layer.top_down[2], p5, resize_by_loops(p6, sides[2]))
        p4_td = node_by_loops(layer.top_down[1], p4, resize_by_loops(p5_td, sides[1]))
        p3_out = node_by_loops(layer.top_down[0], p3, resize_by_loops(p4_td, sides[0]))
        p4_out = node_by_loops(layer.bottom_up[0], p4, p4_td, resize_by_loops(pool_by_loops(p3_out), sides[1]))
        p5_out = node_by_loops(layer.bottom_up[1], p5, p5_td, resize_by_loops(pool_by_loops(p4_out), sides[2]))
        p6_out = node_by_loops(layer.coarsest, p6, resize_by_loops(pool_by_loops(p5_out), sides[3]))
        p3, p4, p5, p6 = p3_out, p4_out, p5_out, p6_out
    return [p3, p4, p5, p6]


def random_bifpn(channels: list[int], out_channels: int, repeats: int = 1) -> BiFPN:
    """Return a BiFPN with random weights and statistics of BatchNorm."""
    torch.manual_seed(0)
    neck = build_neck("bifpn", channels, out_channels, repeats)
    for norm in neck.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                values.uniform_(0.5, 2)
    return neck


@pytest.mark.parametrize("sides", [[5, 3, 1, 1], [7, 6, 4, 2], [9, 4, 2, 1]], ids=str)
def test_bifpn_equals_the_formulas_of_the_paper(sides):
    neck = random_bifpn([3, 1, 2, 3], out_channels=2, repeats=2).double().eval()
    for index, node in enumerate(module for module in neck.modules() if isinstance(module, FusionNode)):
        # Four patterns for the six nodes of a layer, so that the patterns of a node differ between the two layers.
        weights = [[1.5, 0.2, 0.7], [2e-4, 1e-4, 3e-4], [-0.4, 0.3, 1.0], [0.6, 0.9, -0.1]][index % 4]
        node.weights.data = torch.tensor(weights[: len(node.weights)]).double()
    maps = [torch.randn(1, c, side, side).double() for c, side in zip([3, 1, 2, 3], sides, strict=True)]
    expected = bifpn_by_loops(neck, [x[0].numpy() for x in maps])
    for result, reference in zip(neck(maps), expected, strict=True):
        torch.testing.assert_close(result[0].detach(), torch.from_numpy(reference))


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_bifpn_without_positive_weights_is_finite(weight):
    neck = random_bifpn(CHANNELS, out_channels=8, repeats=2)
    for node in neck.modules():
        if isinstance(node, FusionNode):
            nn.init.constant_(node.weights, weight)
    outputs = neck(random_maps(SIDES["128"], batch=4))
    sum(x.square().sum() for x in outputs).backward()
    assert all(x.isfinite().all() for x in outputs)
    assert all(parameter.grad.isfinite().all() for parameter in neck.parameters())


def test_map_with_a_negative_weight_has_no_influence():
    node = FusionNode(2, 4).eval()
    node.weights.data = torch.tensor([0.5, -3.0])
    x, y = torch.randn(2, 1, 4, 5, 5)
    assert torch.equal(node(x, y), node(x, y + 1))


@pytest.mark.parametrize("sides", [SIDES["300"], SIDES["128"]], ids=str)
def test_every_parameter_of_bifpn_and_every_fusion_weight_gets_a_gradient(sides):
    neck = random_bifpn(CHANNELS, out_channels=8, repeats=2).eval()
    sum((x * torch.randn_like(x)).sum() for x in neck(random_maps(sides))).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert all(node.weights.grad.all() for node in neck.modules() if isinstance(node, FusionNode))


def test_repeats_is_the_number_of_layers_of_bifpn_and_3_by_default():
    assert [len(build_neck("bifpn", CHANNELS, 8, repeats).layers) for repeats in (1, 4)] == [1, 4]
    assert len(build_neck("bifpn", CHANNELS).layers) == 3
    sizes = [sum(p.numel() for p in build_neck("bifpn", CHANNELS, 8, repeats).parameters()) for repeats in (1, 2, 3)]
    # 5 top-down nodes with 2 inputs, 4 with 3 inputs, the coarsest with 2; kernels of 9 C and C * C, and BatchNorm
    assert [larger - smaller for smaller, larger in pairwise(sizes)] == [24 + 10 * (9 * 8 + 8 * 8 + 2 * 8)] * 2


def test_fusion_weights_have_no_weight_decay():
    neck = build_neck("bifpn", CHANNELS, out_channels=8)
    _, not_decayed = parameter_groups(neck, weight_decay=0.1)
    names = {name for name, parameter in neck.named_parameters() if any(parameter is p for p in not_decayed["params"])}
    fusion_weights = {name for name, _ in neck.named_parameters() if name.endswith(".weights")}
    assert len(fusion_weights) == 30
    assert fusion_weights <= names


@pytest.mark.parametrize("name", NECKS_WITH_CHANNELS)
def test_channels_last_does_not_change_the_maps(name):
    neck, maps = build_neck(name, CHANNELS, out_channels=8).eval(), random_maps(SIDES["300"])
    expected = neck(maps)
    last = neck.to(memory_format=torch.channels_last)([x.to(memory_format=torch.channels_last) for x in maps])
    for x, reference in zip(last, expected, strict=True):
        torch.testing.assert_close(x, reference, rtol=1e-4, atol=1e-4)
