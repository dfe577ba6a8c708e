import pytest
import torch
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_convert, box_iou

from detection.network.anchors import ANCHOR_SCALES, default_boxes
from detection.network.matching import match_anchors

GRIDS = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
ANCHORS = default_boxes(GRIDS, ANCHOR_SCALES["ssd"])


def random_batch(generator, batch_size, max_objects, quantum=None):
    """Boxes and labels, zero padded; sides that are multiples of `quantum` make equal overlaps likely."""
    counts = torch.randint(0, max_objects + 1, (batch_size,), generator=generator)
    corner = torch.rand(batch_size, max_objects, 2, generator=generator) * 0.7
    size = torch.rand(batch_size, max_objects, 2, generator=generator) * 0.5 + 0.02
    boxes_xyxy = torch.cat([corner, (corner + size).clamp(max=1)], dim=-1)
    if quantum is not None:
        boxes_xyxy = (boxes_xyxy / quantum).round() * quantum
        boxes_xyxy[..., 2:] = torch.maximum(boxes_xyxy[..., 2:], boxes_xyxy[..., :2] + quantum)
    labels = torch.randint(1, 5, (batch_size, max_objects), generator=generator)
    is_padding = torch.arange(max_objects) >= counts[:, None]
    return boxes_xyxy.masked_fill(is_padding[..., None], 0), labels.masked_fill(is_padding, 0)


def torchvision_matches(boxes_xyxy, labels, anchors_cxcywh, iou_threshold):
    anchors_xyxy = box_convert(anchors_cxcywh, "cxcywh", "xyxy")
    matcher = SSDMatcher(iou_threshold)
    rows = []
    for boxes, count in zip(boxes_xyxy, (labels > 0).sum(1).tolist(), strict=True):
        background = torch.full((len(anchors_xyxy),), -1)
        rows.append(matcher(box_iou(boxes[:count], anchors_xyxy)) if count else background)
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("quantum", [None, 1 / 4, 1 / 16], ids=["random", "many ties", "some ties"])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.9])
def test_matching_equals_torchvision(seed, quantum, iou_threshold):
    generator = torch.Generator().manual_seed(seed)
    boxes_xyxy, labels = random_batch(generator, batch_size=16, max_objects=1 + 2 * seed, quantum=quantum)
    matched = match_anchors(boxes_xyxy, labels, ANCHORS, iou_threshold)
    assert torch.equal(matched, torchvision_matches(boxes_xyxy, labels, ANCHORS, iou_threshold))


def test_matching_equals_torchvision_at_8732_anchors():
    anchors = default_boxes([(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)], ANCHOR_SCALES["ssd_coco"])
    boxes_xyxy, labels = random_batch(torch.Generator().manual_seed(0), batch_size=8, max_objects=30)
    matched = match_anchors(boxes_xyxy, labels, anchors)
    assert torch.equal(matched, torchvision_matches(boxes_xyxy, labels, anchors, 0.5))


def test_matching_by_hand():
    anchors = torch.tensor([[0.2, 0.2, 0.4, 0.4], [0.25, 0.2, 0.4, 0.4], [0.8, 0.8, 0.4, 0.4], [0.5, 0.5, 1, 1]])
    boxes_xyxy = torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.7, 0.7, 0.8, 0.8]]])
    # The first object overlaps anchors 0 (IoU 1) and 1 (0.78); the second, small, none by half: its best is anchor 2.
    assert match_anchors(boxes_xyxy, torch.tensor([[1, 1]]), anchors).tolist() == [[0, 0, 1, -1]]


def test_an_overlap_equal_to_the_threshold_matches():
    anchors = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0]])
    boxes_xyxy = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]])
    assert match_anchors(boxes_xyxy, torch.tensor([[1]]), anchors, 0.5).tolist() == [[0, 0]]


def test_of_two_objects_that_claim_one_anchor_the_later_has_it():
    anchors = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    boxes_xyxy = torch.tensor([[[0.25, 0.25, 0.75, 0.75], [0.3, 0.3, 0.4, 0.4]]])
    assert match_anchors(boxes_xyxy, torch.tensor([[1, 1]]), anchors).tolist() == [[1]]


def test_an_image_without_objects_matches_nothing():
    boxes_xyxy, labels = torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64)
    assert (match_anchors(boxes_xyxy, labels, ANCHORS) == -1).all()


def test_padding_matches_nothing_even_if_it_has_an_area():
    boxes_xyxy = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]])
    matched = match_anchors(boxes_xyxy, torch.tensor([[1, 0]]), ANCHORS)
    assert set(matched.unique().tolist()) == {-1, 0}


@pytest.mark.parametrize("empty_box", [[0.5, 0.5, 0.5, 0.9], [0.9, 0.5, 0.5, 0.9]], ids=["flat", "reversed"])
def test_an_object_without_an_area_matches_nothing(empty_box):
    boxes_xyxy = torch.tensor([[[0.1, 0.1, 0.5, 0.5], empty_box]])
    matched = match_anchors(boxes_xyxy, torch.tensor([[1, 1]]), ANCHORS)
    assert set(matched.unique().tolist()) == {-1, 0}


def test_padding_does_not_change_the_matches():
    boxes_xyxy, labels = random_batch(torch.Generator().manual_seed(1), batch_size=4, max_objects=6)
    padded = torch.cat([boxes_xyxy, torch.zeros(4, 9, 4)], dim=1)
    padded_labels = torch.cat([labels, torch.zeros(4, 9, dtype=torch.int64)], dim=1)
    assert torch.equal(match_anchors(padded, padded_labels, ANCHORS), match_anchors(boxes_xyxy, labels, ANCHORS))


def test_the_inputs_are_left_as_they_were():
    boxes_xyxy, labels = random_batch(torch.Generator().manual_seed(2), batch_size=4, max_objects=6)
    before = boxes_xyxy.clone(), labels.clone(), ANCHORS.clone()
    match_anchors(boxes_xyxy, labels, ANCHORS)
    assert all(torch.equal(a, b) for a, b in zip(before, (boxes_xyxy, labels, ANCHORS), strict=True))


def test_matching_asks_the_device_for_no_value():
    # A meta tensor has none to give: any .item(), nonzero or boolean selection would raise.
    matched = match_anchors(
        torch.zeros(2, 3, 4, device="meta"), torch.zeros(2, 3, dtype=torch.int64, device="meta"), ANCHORS.to("meta")
    )
    assert matched.shape == (2, len(ANCHORS))
