import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.ops import box_convert

from detection.anchors import ANCHOR_SCALES, ASPECT_RATIOS, default_boxes
from detection.boxes import encode_boxes
from detection.postprocess import PostprocessConfig, postprocess

NUM_CLASSES = 5
ANCHORS = default_boxes([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], ANCHOR_SCALES["ssd"])
DEFAULTS = PostprocessConfig().model_dump()
IMAGE_SIZE = 320  # torchvision works in pixels


def torchvision_detections(box_deltas, class_logits, score_threshold, nms_iou, max_detections):
    ssd = TorchvisionSSD(
        nn.Identity(),
        DefaultBoxGenerator([list(ratios) for ratios in ASPECT_RATIOS]),
        size=(IMAGE_SIZE, IMAGE_SIZE),
        num_classes=NUM_CLASSES + 1,
        head=nn.Identity(),
        score_thresh=score_threshold,
        nms_thresh=nms_iou,
        detections_per_img=max_detections,
        topk_candidates=len(ANCHORS),
    )
    outputs = {"bbox_regression": box_deltas, "cls_logits": class_logits}
    anchors_xyxy = box_convert(ANCHORS, "cxcywh", "xyxy") * IMAGE_SIZE
    batch_size = len(box_deltas)
    return ssd.postprocess_detections(outputs, [anchors_xyxy] * batch_size, [(IMAGE_SIZE, IMAGE_SIZE)] * batch_size)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("score_threshold", "nms_iou", "max_detections"), [(0.05, 0.45, 200), (0.3, 0.6, 20), (0.01, 0.3, 1000)]
)
def test_detections_equal_torchvision(seed, score_threshold, nms_iou, max_detections):
    generator = torch.Generator().manual_seed(seed)
    box_deltas = torch.randn(3, len(ANCHORS), 4, generator=generator) * 2
    class_logits = torch.randn(3, len(ANCHORS), NUM_CLASSES + 1, generator=generator) * 2
    ours = postprocess(
        box_deltas,
        class_logits,
        ANCHORS,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        max_detections=max_detections,
    )
    theirs = torchvision_detections(box_deltas, class_logits, score_threshold, nms_iou, max_detections)
    for detections, expected in zip(ours, theirs, strict=True):
        assert torch.equal(detections.labels, expected["labels"])
        torch.testing.assert_close(detections.scores, expected["scores"])
        torch.testing.assert_close(detections.boxes_xyxy * IMAGE_SIZE, expected["boxes"], atol=1e-3, rtol=0)


def outputs_of(boxes_xyxy, probabilities):
    """What a network would say to have boxes (n, 4) with class probabilities (n, C + 1) at the first n anchors.

    Every other anchor is sure to be background."""
    n = len(boxes_xyxy)
    box_deltas, class_logits = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), probabilities.shape[1])
    box_deltas[0, :n] = encode_boxes(boxes_xyxy, ANCHORS[:n])
    class_logits[0, :, 0] = 100
    class_logits[0, :n] = probabilities.log()
    return box_deltas, class_logits


def test_detections_by_hand():
    boxes_xyxy = torch.tensor(
        [[0.1, 0.1, 0.3, 0.3], [0.12, 0.1, 0.32, 0.3], [0.12, 0.1, 0.32, 0.3], [0.6, 0.6, 0.8, 0.8]]
    )
    probabilities = torch.tensor(
        [
            [0.4, 0.57, 0.03],  # class 1; its second class is below the threshold
            [0.2, 0.8, 0.0],  # the same object with a better score: this one stays
            [0.3, 0.0, 0.7],  # class 2 at the same place: another class, not suppressed
            [0.5, 0.3, 0.2],  # one anchor, two classes
        ]
    )
    [detections] = postprocess(*outputs_of(boxes_xyxy, probabilities), ANCHORS, **DEFAULTS)
    assert detections.labels.tolist() == [1, 2, 1, 2]
    torch.testing.assert_close(detections.scores, torch.tensor([0.8, 0.7, 0.3, 0.2]))
    torch.testing.assert_close(detections.boxes_xyxy, boxes_xyxy[[1, 2, 3, 3]])


def test_a_score_equal_to_the_threshold_is_reported():
    box_deltas, class_logits = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), 2)
    assert len(postprocess(box_deltas, class_logits, ANCHORS, **DEFAULTS | {"score_threshold": 0.5})[0].scores) > 0


def test_the_best_are_kept():
    boxes_xyxy = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3], [0.4, 0.4, 0.5, 0.5]])
    probabilities = torch.tensor([[0.4, 0.6], [0.1, 0.9], [0.3, 0.7]])
    [detections] = postprocess(*outputs_of(boxes_xyxy, probabilities), ANCHORS, **DEFAULTS | {"max_detections": 2})
    torch.testing.assert_close(detections.scores, torch.tensor([0.9, 0.7]))


def test_boxes_are_clipped_to_the_image():
    [detections] = postprocess(
        *outputs_of(torch.tensor([[-0.5, 0.2, 1.5, 0.6]]), torch.tensor([[0.1, 0.9]])), ANCHORS, **DEFAULTS
    )
    torch.testing.assert_close(detections.boxes_xyxy, torch.tensor([[0.0, 0.2, 1.0, 0.6]]))


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
