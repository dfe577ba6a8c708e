import pytest
import torch
from torch import nn

from detection.network.necks import build_neck

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
@pytest.mark.parametrize("name", ["fpn", "pan", "dense_fpn"])
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


@pytest.mark.parametrize("name", ["fpn", "pan", "dense_fpn"])
def test_convolutions_start_xavier_uniform_with_zero_bias(name):
    for conv in build_neck(name, [64] * 6, out_channels=64).modules():
        if isinstance(conv, nn.Conv2d):
            fan = (conv.in_channels + conv.out_channels) * conv.kernel_size[0] ** 2
            assert conv.weight.abs().max().item() == pytest.approx((6 / fan) ** 0.5, rel=0.01)
            assert not conv.bias.any()


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
