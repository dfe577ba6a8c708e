import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert

from detection.network.boxes import decode_boxes, encode_boxes

TORCHVISION_CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def random_anchors_cxcywh(n):
    return torch.cat([torch.rand(n, 2), torch.rand(n, 2) * 0.8 + 0.05], dim=1)


def random_boxes_xyxy(n):
    return box_convert(random_anchors_cxcywh(n), "cxcywh", "xyxy")


def test_encoding_equals_torchvision():
    boxes_xyxy, anchors_cxcywh = random_boxes_xyxy(1000).double(), random_anchors_cxcywh(1000).double()
    expected = TORCHVISION_CODER.encode_single(boxes_xyxy, box_convert(anchors_cxcywh, "cxcywh", "xyxy"))
    torch.testing.assert_close(encode_boxes(boxes_xyxy, anchors_cxcywh), expected)


def test_decoding_inverts_encoding_and_anchors_broadcast_over_the_batch():
    boxes_xyxy, anchors_cxcywh = random_boxes_xyxy(14).view(2, 7, 4), random_anchors_cxcywh(7)
    box_deltas = encode_boxes(boxes_xyxy, anchors_cxcywh)
    torch.testing.assert_close(box_deltas[1], encode_boxes(boxes_xyxy[1], anchors_cxcywh))
    torch.testing.assert_close(decode_boxes(box_deltas, anchors_cxcywh), boxes_xyxy, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [3, 1e3])
def test_decoding_equals_torchvision_and_is_finite_for_huge_deltas(size):
    box_deltas, anchors_cxcywh = torch.randn(1000, 4).double() * size, random_anchors_cxcywh(1000).double()
    decoded = decode_boxes(box_deltas, anchors_cxcywh)
    assert decoded.isfinite().all()
    expected = TORCHVISION_CODER.decode_single(box_deltas, box_convert(anchors_cxcywh, "cxcywh", "xyxy"))
    torch.testing.assert_close(decoded, expected)
