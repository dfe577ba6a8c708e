import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert

from detection.network.anchors import ANCHOR_SCALES, ASPECT_RATIOS, default_boxes

SSD300_GRIDS = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
SWIN336_GRIDS = [(42, 42), (21, 21), (11, 11), (6, 6), (3, 3), (1, 1)]
OBLONG_GRIDS = [(8, 6), (4, 3), (2, 3), (2, 1), (1, 2), (1, 1)]


def torchvision_default_boxes(grid_sizes, scales):
    """Return boxes (A, 4) xyxy. They are fractions of the image because its size is given as 1 pixel."""
    generator = DefaultBoxGenerator([list(ratios) for ratios in ASPECT_RATIOS], scales=list(scales), clip=False)
    feature_maps = [torch.zeros(1, 1, rows, columns) for rows, columns in grid_sizes]
    return generator(ImageList(torch.zeros(1, 3, 1, 1), [(1, 1)]), feature_maps)[0]


@pytest.mark.parametrize(("grid_sizes", "count"), [(SSD300_GRIDS, 8732), (SWIN336_GRIDS, 10684)])
def test_number_of_default_boxes(grid_sizes, count):
    assert default_boxes(grid_sizes, ANCHOR_SCALES["ssd"]).shape == (count, 4)


@pytest.mark.parametrize("preset", ANCHOR_SCALES)
@pytest.mark.parametrize("grid_sizes", [SSD300_GRIDS, SWIN336_GRIDS, OBLONG_GRIDS])
def test_boxes_equal_torchvisions_after_clipping(grid_sizes, preset):
    anchors_xyxy = box_convert(default_boxes(grid_sizes, ANCHOR_SCALES[preset]), "cxcywh", "xyxy")
    expected = torchvision_default_boxes(grid_sizes, ANCHOR_SCALES[preset]).clamp(0, 1)
    torch.testing.assert_close(anchors_xyxy, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("maps", "scales"), [(5, 7), (6, 6)])
def test_wrong_number_of_maps_or_scales_is_an_error(maps, scales):
    with pytest.raises(ValueError, match=f"{maps} maps and {scales} scales.*6 maps and 7 scales"):
        default_boxes(SSD300_GRIDS[:maps], ANCHOR_SCALES["ssd"][:scales])
