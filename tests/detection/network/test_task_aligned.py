import math
import shutil

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from detection.network.assignment.task_aligned import match_task_aligned
from detection.network.boxes import decode_boxes
from tests.detection.network.peers import ANCHORS, NUM_CLASSES, OperatorCount, random_objects


def brute_force(box_deltas, class_logits, boxes_xyxy, labels, anchors_cxcywh):
    """Match one image with plain loops over objects and anchors. Returns two lists: matched and alignment."""
    predicted_xyxy = decode_boxes(box_deltas, anchors_cxcywh)
    positives = {}  # t and u of each (anchor, object)
    for index, ((left, top, right, bottom), label) in enumerate(zip(boxes_xyxy.tolist(), labels.tolist(), strict=True)):
        if label == 0 or right <= left or bottom <= top:
            continue
        iou = box_iou(boxes_xyxy[index : index + 1], predicted_xyxy)[0].tolist()
        scores = [1 / (1 + math.exp(-logit)) for logit in class_logits[:, label - 1].tolist()]
        candidates = []
        for anchor, (x, y, _, _) in enumerate(anchors_cxcywh.tolist()):
            t = scores[anchor] * iou[anchor] ** 6
            if left < x < right and top < y < bottom and t > 0:
                candidates.append((-t, anchor))
        for negative_t, anchor in sorted(candidates)[:13]:
            positives[anchor, index] = -negative_t, iou[anchor]

    matched, alignment = [-1] * len(anchors_cxcywh), [0.0] * len(anchors_cxcywh)
    for anchor, _ in positives:
        rivals = [(-positives[anchor, rival][1], rival) for rival in range(len(labels)) if (anchor, rival) in positives]
        matched[anchor] = min(rivals)[1]
    for index in range(len(labels)):
        kept = {anchor: positives[anchor, index] for anchor in range(len(matched)) if matched[anchor] == index}
        for anchor, (t, _) in kept.items():
            alignment[anchor] = t / max(t for t, _ in kept.values()) * max(u for _, u in kept.values())
    return matched, alignment


def random_batch(seed, batch_size, max_objects, quantum=None):
    """Return all arguments but the anchors. Some objects repeat the previous one, are tiny, or have no area.

    With a quantum, predictions are rounded too, so that many t are equal."""
    generator = torch.Generator().manual_seed(seed)
    boxes_xyxy, labels = random_objects(generator, batch_size, max_objects, quantum)
    kind = torch.randint(0, 8, labels.shape, generator=generator)
    for index in range(1, max_objects):
        repeats = (kind[:, index] == 0) & (labels[:, index] > 0)
        boxes_xyxy[repeats, index] = boxes_xyxy[repeats, index - 1]
    boxes_xyxy[kind == 1, 2] = boxes_xyxy[kind == 1, 0]
    boxes_xyxy[kind == 2, 2:] = boxes_xyxy[kind == 2, :2] + 1 / 64
    box_deltas = torch.randn(batch_size, len(ANCHORS), 4, generator=generator)
    class_logits = torch.randn(batch_size, len(ANCHORS), NUM_CLASSES, generator=generator) * 2 - 3
    if quantum is not None:
        box_deltas, class_logits = (box_deltas / 4).round(), (class_logits / 4).round()
    return {"box_deltas": box_deltas, "class_logits": class_logits, "boxes_xyxy": boxes_xyxy, "labels": labels}


def images_of(batch, images):
    return {name: tensor[images] for name, tensor in batch.items()}


@pytest.fixture(params=["CPU", "accelerator"])
def _code_path(request, monkeypatch):
    """Run both code paths: pairs of objects and anchors selected (CPU), and all pairs (GPU)."""
    if request.param == "accelerator":
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)


@pytest.mark.usefixtures("_code_path")
@pytest.mark.parametrize("quantum", [None, 1 / 4, 1 / 16], ids=["random", "many ties", "some ties"])
@pytest.mark.parametrize("seed", range(12))
def test_matching_and_alignment_equal_brute_force(seed, quantum):
    batch = random_batch(seed, 4, 1 + seed, quantum)
    matched, alignment = match_task_aligned(**batch, anchors_cxcywh=ANCHORS)
    for index in range(4):
        expected_matched, expected_alignment = brute_force(**images_of(batch, index), anchors_cxcywh=ANCHORS)
        assert matched[index].tolist() == expected_matched
        torch.testing.assert_close(alignment[index], torch.tensor(expected_alignment), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("_code_path")
def test_anchors_with_equal_predictions_match_in_order_of_index():
    # The outputs of a network that was not trained yet are almost equal at all anchors.
    batch = random_batch(0, 3, 6, quantum=1 / 16)
    batch["box_deltas"].zero_()
    batch["class_logits"].fill_(-4)
    matched, _ = match_task_aligned(**batch, anchors_cxcywh=ANCHORS)
    assert matched.tolist() == [brute_force(**images_of(batch, i), anchors_cxcywh=ANCHORS)[0] for i in range(3)]


def match_example(anchors_xyxy, logits, boxes_xyxy, box_deltas=None):
    """Match objects of class 1 to anchors that predict their own boxes. Returns two lists: matched and alignment."""
    anchors = box_convert(torch.tensor(anchors_xyxy), "xyxy", "cxcywh")
    box_deltas = torch.zeros(1, len(anchors), 4) if box_deltas is None else torch.tensor([box_deltas])
    logits = torch.tensor([logits])[..., None] if isinstance(logits[0], float) else torch.tensor([logits])
    labels = torch.arange(1, len(boxes_xyxy) + 1).clamp(max=logits.shape[2])[None]
    matched, alignment = match_task_aligned(box_deltas, logits, torch.tensor([boxes_xyxy]), labels, anchors)
    return matched[0].tolist(), alignment[0].tolist()


BOX = [0.0, 0.0, 0.75, 0.75]
HALF = [0.0, 0.0, 0.75, 0.375]


@pytest.mark.usefixtures("_code_path")
def test_alignment_is_score_times_sixth_power_of_iou():
    # Anchor 0: s = 0.5, u = 1, t = 0.5. Anchor 1: s = 0.75, u = 1 / 2, t = 0.75 / 64. The largest u is 1, so the
    # factor is 1 / 0.5. Anchor 2 has u = 0.140625 / 0.984375 = 1 / 7, but its centre is on the corner of the object.
    anchors = [BOX, HALF, [0.375, 0.375, 1.125, 1.125]]
    matched, alignment = match_example(anchors, [0.0, math.log(3), 0.0], [BOX])
    assert matched == [0, 0, -1]
    assert alignment == pytest.approx([1, 0.75 / 64 / 0.5, 0], rel=1e-6)


@pytest.mark.usefixtures("_code_path")
def test_largest_alignment_of_an_object_is_its_largest_iou():
    # Anchor 0: s = 0.9, u = 1 / 2, t = 0.0140625. Anchor 1: s = 0.01, u = 2 / 3, t = 0.01 * 64 / 729 = 0.00087791.
    anchors = [HALF, [0.0, 0.0, 0.75, 0.5]]
    matched, alignment = match_example(anchors, [math.log(9), -math.log(99)], [BOX])
    assert matched == [0, 0]
    assert alignment == pytest.approx([2 / 3, 0.00087791 / 0.0140625 * 2 / 3], rel=1e-4)


@pytest.mark.usefixtures("_code_path")
def test_an_anchor_of_several_objects_goes_to_the_highest_iou_before_alignments_are_scaled():
    # Anchor 0 is object 0, anchor 1 is object 1, and u = 2 / 3 for the other two pairs. All four pairs are positive.
    # Object 1 has t = 0.99 * (2 / 3)^6 = 0.087 at anchor 0, which it loses, and t = 0.01 at anchor 1.
    objects = [BOX, [0.0, 0.0, 0.75, 0.5]]
    logits = [[0.0, math.log(99)], [0.0, -math.log(99)]]
    assert match_example(objects, logits, objects) == ([0, 1], [1.0, 1.0])
    assert match_example([BOX], [0.0], [[0.0, 0.0, 0.75, 0.5], BOX]) == ([1], [1.0])
    assert match_example([BOX], [0.0], [BOX, BOX]) == ([0], [1.0])


@pytest.mark.usefixtures("_code_path")
def test_the_thirteen_best_anchors_are_positive():
    assert match_example([BOX] * 20, [0.0] * 20, [BOX])[0] == [0] * 13 + [-1] * 7
    assert match_example([BOX] * 20, [i / 8 for i in range(20)], [BOX])[0] == [-1] * 7 + [0] * 13


@pytest.mark.usefixtures("_code_path")
def test_the_centre_of_the_anchor_must_be_inside_and_the_predicted_box_must_overlap():
    # A delta of 10 moves a box by its side. Anchor 0 predicts a box outside the object, anchor 1 predicts the object.
    anchors = [BOX, [0.75, 0.0, 1.5, 0.75]]
    moved = [[10.0, 0.0, 0.0, 0.0], [-10.0, 0.0, 0.0, 0.0]]
    assert match_example(anchors, [0.0, 0.0], [BOX], moved) == ([-1, -1], [0.0, 0.0])


@pytest.mark.usefixtures("_code_path")
@pytest.mark.parametrize(
    ("box", "label"),
    [([0.5, 0.5, 0.5, 0.9], 1), ([0.9, 0.5, 0.5, 0.9], 1), ([0.0, 0.0, 1.0, 1.0], 0)],
    ids=["flat", "reversed", "padding"],
)
def test_padding_and_boxes_without_area_match_nothing(box, label):
    batch = random_batch(0, 1, 2)
    batch["boxes_xyxy"] = torch.tensor([[[0.1, 0.1, 0.5, 0.5], box]])
    batch["labels"] = torch.tensor([[1, label]])
    assert set(match_task_aligned(**batch, anchors_cxcywh=ANCHORS)[0].unique().tolist()) == {-1, 0}
    batch["boxes_xyxy"], batch["labels"] = batch["boxes_xyxy"][:, 1:], batch["labels"][:, 1:]
    matched, alignment = match_task_aligned(**batch, anchors_cxcywh=ANCHORS)
    assert (matched == -1).all()
    assert (alignment == 0).all()


@pytest.mark.usefixtures("_code_path")
def test_images_are_independent():
    batch = random_batch(3, 7, 12, quantum=1 / 16)
    matched, alignment = match_task_aligned(**batch, anchors_cxcywh=ANCHORS)
    for images in ([4, 0, 6, 2, 5, 1, 3], [0], [1, 2, 3], [4, 5, 6]):
        part_matched, part_alignment = match_task_aligned(**images_of(batch, images), anchors_cxcywh=ANCHORS)
        assert torch.equal(part_matched, matched[images])
        assert torch.equal(part_alignment, alignment[images])


@pytest.mark.usefixtures("_code_path")
def test_numbers_are_float32_under_autocast_and_need_no_gradient():
    batch = random_batch(5, 3, 6)
    batch["box_deltas"] = batch["box_deltas"].bfloat16().requires_grad_()
    batch["class_logits"] = batch["class_logits"].bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        matched, alignment = match_task_aligned(**batch, anchors_cxcywh=ANCHORS)
    assert alignment.dtype == torch.float32
    assert not alignment.requires_grad
    rounded = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    expected = match_task_aligned(**rounded, anchors_cxcywh=ANCHORS)
    assert torch.equal(matched, expected[0])
    assert torch.equal(alignment, expected[1])


def test_number_of_gpu_operators_is_independent_of_batch_size_and_none_synchronises():
    # A meta tensor has no values, so any .item(), nonzero or boolean selection would raise.
    counts = []
    for batch_size in (2, 32):
        batch = {name: tensor.to("meta") for name, tensor in random_batch(4, batch_size, 7).items()}
        with OperatorCount() as operators:
            match_task_aligned(**batch, anchors_cxcywh=ANCHORS.to("meta"))
        counts.append(operators.count)
    assert counts[0] == counts[1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.usefixtures("compiler_cache")
def test_compiled_matching_equals_eager_matching_at_any_padding():
    compiled = torch.compile(match_task_aligned, dynamic=True, fullgraph=True)
    for max_objects in (7, 12):
        batch = random_batch(6, 5, max_objects)
        matched, alignment = compiled(**batch, anchors_cxcywh=ANCHORS)
        expected = match_task_aligned(**batch, anchors_cxcywh=ANCHORS)
        assert torch.equal(matched, expected[0])
        torch.testing.assert_close(alignment, expected[1])
