import pytest
import torch
from torchvision.ops import box_convert, nms

from detection.network.boxes import decode_boxes, encode_boxes
from detection.network.heads import logits_per_box
from detection.network.postprocess import INITIAL_PAIRS, PostprocessConfig, RawDetections, postprocess
from tests.detection.network.peers import ANCHORS, NUM_CLASSES, OperatorCount

DEFAULTS = PostprocessConfig().model_dump()


def plain_postprocess(box_deltas, class_logits, score_threshold, nms_iou, max_detections, score_function):
    """Post-process one image by definition: all scores, all pairs over the threshold, NMS class by class."""
    scores = {"softmax": class_logits.softmax(dim=-1)[:, 1:], "sigmoid": class_logits.sigmoid()}[score_function]
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


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("score_threshold", [0.0, 0.01, 0.3, 1 - 1e-6])
@pytest.mark.parametrize("max_detections", [1, 10, 100, 5000])
@pytest.mark.parametrize("quantum", [None, 0.5, 2.0], ids=["distinct scores", "some ties", "many ties"])
def test_detections_are_bitwise_equal_to_the_definition(score_threshold, max_detections, quantum, score_function):
    generator = torch.Generator().manual_seed(max_detections)
    box_deltas = torch.randn(2, len(ANCHORS), 4, generator=generator) * 2
    columns = logits_per_box(NUM_CLASSES, score_function)
    class_logits = torch.randn(2, len(ANCHORS), columns, generator=generator) * 4
    class_logits[0, :50, 2] += 40  # scores of exactly 1
    if quantum is not None:
        class_logits = (class_logits / quantum).round() * quantum
    settings = {"score_threshold": score_threshold, "nms_iou": 0.45, "max_detections": max_detections}
    settings["score_function"] = score_function
    for image, detections in enumerate(postprocess(box_deltas, class_logits, ANCHORS, **settings)):
        expected = plain_postprocess(box_deltas[image], class_logits[image], **settings)
        assert len(expected.scores) > 0 or image == 1
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(detections, expected, strict=True))


def test_more_pairs_are_used_if_nms_suppresses_the_best_ones():
    boxes_xyxy = torch.tensor([[0.1, 0.1, 0.3, 0.3]] * (3 * INITIAL_PAIRS) + [[0.6, 0.6, 0.8, 0.8]])
    scores = torch.linspace(0.9, 0.2, len(boxes_xyxy))
    [detections] = postprocess(
        *outputs_of(boxes_xyxy, torch.stack([1 - scores, scores], dim=1)), ANCHORS, **DEFAULTS | {"max_detections": 2}
    )
    torch.testing.assert_close(detections.boxes_xyxy, boxes_xyxy[[0, -1]])


@pytest.mark.parametrize("invalid_logit", [torch.nan, torch.inf])
def test_anchor_with_nan_scores_is_not_reported(invalid_logit):
    boxes_xyxy = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.8, 0.8]])
    box_deltas, class_logits = outputs_of(boxes_xyxy, torch.tensor([[0.1, 0.9], [0.2, 0.8]]))
    class_logits[0, 0, 1] = invalid_logit
    [detections] = postprocess(box_deltas, class_logits, ANCHORS, **DEFAULTS)
    torch.testing.assert_close(detections.boxes_xyxy, boxes_xyxy[1:])


def test_sigmoid_scores_that_equal_the_threshold_are_detections():
    class_logits = torch.linspace(-9, 9, len(ANCHORS)).view(1, -1, 1)
    for index, score in list(enumerate(class_logits.sigmoid().flatten().tolist()))[::40]:
        settings = {"score_threshold": score, "nms_iou": 1.0, "max_detections": len(ANCHORS)}
        [detections] = postprocess(
            torch.zeros(1, len(ANCHORS), 4), class_logits, ANCHORS, **settings, score_function="sigmoid"
        )
        assert len(detections.scores) >= len(ANCHORS) - index
        assert detections.scores[-1] == score
        assert set(detections.labels.tolist()) == {1}


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("num_classes", [1, 40])
def test_number_of_operators_is_independent_of_num_classes(num_classes, score_function):
    # On a GPU, a loop over the classes would synchronise once per class.
    generator = torch.Generator().manual_seed(0)
    box_deltas = torch.randn(1, len(ANCHORS), 4, generator=generator)
    class_logits = torch.randn(1, len(ANCHORS), logits_per_box(num_classes, score_function), generator=generator)
    settings = DEFAULTS | {"max_detections": 10, "score_function": score_function}
    with OperatorCount() as operators:
        postprocess(box_deltas, class_logits, ANCHORS, **settings)
    assert operators.count < 120


def outputs_of(boxes_xyxy, probabilities):
    """Return network outputs that decode to boxes (n, 4) with probabilities (n, C + 1) at the first n anchors.

    All other anchors are background with probability 1."""
    n = len(boxes_xyxy)
    box_deltas, class_logits = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), probabilities.shape[1])
    box_deltas[0, :n] = encode_boxes(boxes_xyxy, ANCHORS[:n])
    class_logits[0, :, 0] = 100
    class_logits[0, :n] = probabilities.log()
    return box_deltas, class_logits


def test_image_without_detections_gives_empty_tensors():
    box_deltas, class_logits = outputs_of(torch.zeros(0, 4), torch.zeros(0, NUM_CLASSES + 1))
    [detections] = postprocess(box_deltas, class_logits, ANCHORS, **DEFAULTS)
    assert [tuple(tensor.shape) for tensor in detections] == [(0, 4), (0,), (0,)]
    assert detections.labels.dtype == torch.int64


@pytest.mark.parametrize("count", [30, 1300])
def test_equal_scores_are_ordered_by_anchor_then_class(count):
    # torchvision's batched_nms loops over the classes above 1,000 boxes; its order of ties is not stable there.
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
