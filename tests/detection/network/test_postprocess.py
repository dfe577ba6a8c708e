import pytest
import torch
from torchvision.ops import box_convert, nms

from detection.network.boxes import decode_boxes, encode_boxes
from detection.network.postprocess import FIRST_PAIRS, PostprocessConfig, RawDetections, postprocess
from tests.detection.network.peers import ANCHORS, NUM_CLASSES, OperatorCount

DEFAULTS = PostprocessConfig().model_dump()
IMAGE_SIZE = 320  # torchvision works in pixels


def plain_postprocess(box_deltas, class_logits, score_threshold, nms_iou, max_detections):
    """Every score, every pair over the threshold, class by class: the definition, for one image."""
    scores = class_logits.softmax(dim=-1)[:, 1:]
    anchor, label = (scores >= score_threshold).nonzero(as_tuple=True)
    scores, order = scores[anchor, label].sort(descending=True, stable=True)
    anchor, labels = anchor[order], label[order] + 1
    boxes_xyxy = decode_boxes(box_deltas, ANCHORS)[anchor].clamp(0, 1)
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        of_class = (labels == label).nonzero()[:, 0]
        kept[of_class[nms(boxes_xyxy[of_class], scores[of_class], nms_iou)]] = True
    keep = kept.nonzero()[:max_detections, 0]
    return RawDetections(boxes_xyxy[keep], scores[keep], labels[keep])


@pytest.mark.parametrize("score_threshold", [0.0, 0.01, 0.3, 1 - 1e-6])
@pytest.mark.parametrize("max_detections", [1, 10, 100, 5000])
@pytest.mark.parametrize("quantum", [None, 0.5, 2.0], ids=["distinct scores", "some ties", "many ties"])
def test_detections_equal_the_definition_bit_for_bit(score_threshold, max_detections, quantum):
    generator = torch.Generator().manual_seed(max_detections)
    box_deltas = torch.randn(2, len(ANCHORS), 4, generator=generator) * 2
    class_logits = torch.randn(2, len(ANCHORS), NUM_CLASSES + 1, generator=generator) * 4
    class_logits[0, :50, 2] += 40  # scores of exactly 1
    if quantum is not None:
        class_logits = (class_logits / quantum).round() * quantum
    settings = {"score_threshold": score_threshold, "nms_iou": 0.45, "max_detections": max_detections}
    for image, detections in enumerate(postprocess(box_deltas, class_logits, ANCHORS, **settings)):
        expected = plain_postprocess(box_deltas[image], class_logits[image], **settings)
        assert len(expected.scores) > 0 or image == 1
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(detections, expected, strict=True))


def test_more_pairs_are_looked_at_where_the_best_are_one_object():
    boxes_xyxy = torch.tensor([[0.1, 0.1, 0.3, 0.3]] * (3 * FIRST_PAIRS) + [[0.6, 0.6, 0.8, 0.8]])
    scores = torch.linspace(0.9, 0.2, len(boxes_xyxy))
    [detections] = postprocess(
        *outputs_of(boxes_xyxy, torch.stack([1 - scores, scores], dim=1)), ANCHORS, **DEFAULTS | {"max_detections": 2}
    )
    torch.testing.assert_close(detections.boxes_xyxy, boxes_xyxy[[0, -1]])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_an_anchor_whose_scores_are_undefined_is_not_reported(broken):
    boxes_xyxy = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.8, 0.8]])
    box_deltas, class_logits = outputs_of(boxes_xyxy, torch.tensor([[0.1, 0.9], [0.2, 0.8]]))
    class_logits[0, 0, 1] = broken
    [detections] = postprocess(box_deltas, class_logits, ANCHORS, **DEFAULTS)
    torch.testing.assert_close(detections.boxes_xyxy, boxes_xyxy[1:])


@pytest.mark.parametrize("num_classes", [1, 40])
def test_the_operators_do_not_grow_with_the_classes(num_classes):
    # On a GPU, a loop over the classes would wait for the device at each of them.
    generator = torch.Generator().manual_seed(0)
    box_deltas = torch.randn(1, len(ANCHORS), 4, generator=generator)
    class_logits = torch.randn(1, len(ANCHORS), num_classes + 1, generator=generator)
    with OperatorCount() as operators:
        postprocess(box_deltas, class_logits, ANCHORS, **DEFAULTS | {"max_detections": 10})
    assert operators.count < 120


def outputs_of(boxes_xyxy, probabilities):
    """What a network would say to have boxes (n, 4) with class probabilities (n, C + 1) at the first n anchors.

    Every other anchor is sure to be background."""
    n = len(boxes_xyxy)
    box_deltas, class_logits = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), probabilities.shape[1])
    box_deltas[0, :n] = encode_boxes(boxes_xyxy, ANCHORS[:n])
    class_logits[0, :, 0] = 100
    class_logits[0, :n] = probabilities.log()
    return box_deltas, class_logits


def test_an_image_without_detections_gives_empty_tensors():
    box_deltas, class_logits = outputs_of(torch.zeros(0, 4), torch.zeros(0, NUM_CLASSES + 1))
    [detections] = postprocess(box_deltas, class_logits, ANCHORS, **DEFAULTS)
    assert [tuple(tensor.shape) for tensor in detections] == [(0, 4), (0,), (0,)]
    assert detections.labels.dtype == torch.int64


@pytest.mark.parametrize("count", [30, 1300], ids=["offset boxes", "class by class"])
def test_equal_scores_come_in_the_order_of_anchor_and_class(count):
    # torchvision's NMS takes another path above 1,000 boxes; its own order of ties is not stable there.
    boxes_xyxy = box_convert(ANCHORS[:count], "cxcywh", "xyxy")
    probabilities = torch.full((count, 3), 1 / 3)
    [detections] = postprocess(
        *outputs_of(boxes_xyxy, probabilities), ANCHORS, score_threshold=0.05, nms_iou=1.0, max_detections=2 * count
    )
    assert len(detections.scores) == 2 * count
    assert detections.labels.tolist() == [1, 2] * count
    torch.testing.assert_close(detections.boxes_xyxy[::2], boxes_xyxy)


def test_half_precision_outputs_give_float32_detections():
    box_deltas, class_logits = outputs_of(torch.tensor([[0.1, 0.1, 0.4, 0.4]]), torch.tensor([[0.1, 0.9]]))
    [detections] = postprocess(box_deltas.bfloat16(), class_logits.bfloat16(), ANCHORS, **DEFAULTS)
    assert detections.boxes_xyxy.dtype == detections.scores.dtype == torch.float32
    assert len(detections.scores) == 1
