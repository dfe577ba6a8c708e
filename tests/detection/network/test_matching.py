import pytest
import torch
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_convert, box_iou

from detection.network.assignment.matching import match_anchors
from tests.detection.network.peers import ANCHORS, random_objects


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
    boxes_xyxy, labels = random_objects(generator, 16, 1 + 2 * seed, quantum)
    matched = match_anchors(boxes_xyxy, labels, ANCHORS, iou_threshold)
    assert torch.equal(matched, torchvision_matches(boxes_xyxy, labels, ANCHORS, iou_threshold))


@pytest.mark.parametrize(
    ("anchors_cxcywh", "boxes_xyxy", "matched"),
    [
        # The first object has IoU 1 with anchor 0 and 0.78 with anchor 1. The second has IoU < 0.5 with all anchors.
        (
            [[0.2, 0.2, 0.4, 0.4], [0.25, 0.2, 0.4, 0.4], [0.8, 0.8, 0.4, 0.4], [0.5, 0.5, 1, 1]],
            [[0.0, 0.0, 0.4, 0.4], [0.7, 0.7, 0.8, 0.8]],
            [0, 0, 1, -1],
        ),
        ([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0]], [[0.0, 0.0, 0.5, 1.0]], [0, 0]),
        ([[0.5, 0.5, 0.5, 0.5]], [[0.25, 0.25, 0.75, 0.75], [0.3, 0.3, 0.4, 0.4]], [1]),
    ],
    ids=["both rules", "IoU equal to the threshold", "last of two objects with the same best anchor"],
)
def test_matching_of_small_examples(anchors_cxcywh, boxes_xyxy, matched):
    labels = torch.ones(1, len(boxes_xyxy), dtype=torch.int64)
    assert match_anchors(torch.tensor([boxes_xyxy]), labels, torch.tensor(anchors_cxcywh)).tolist() == [matched]


@pytest.mark.parametrize(
    ("box", "label"),
    [([0.5, 0.5, 0.5, 0.9], 1), ([0.9, 0.5, 0.5, 0.9], 1), ([0.0, 0.0, 1.0, 1.0], 0)],
    ids=["flat", "reversed", "padding"],
)
def test_padding_and_boxes_without_area_match_nothing(box, label):
    boxes_xyxy = torch.tensor([[[0.1, 0.1, 0.5, 0.5], box]])
    assert set(match_anchors(boxes_xyxy, torch.tensor([[1, label]]), ANCHORS).unique().tolist()) == {-1, 0}
    assert (match_anchors(boxes_xyxy[:, 1:], torch.tensor([[label]]), ANCHORS) == -1).all()
