import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from detection.network.assignment.matching import match_anchors
from detection.network.boxes import decode_boxes, encode_boxes
from detection.network.loss import multibox_loss
from detection.network.losses.pisa import importance_weights, score_weights
from tests.detection.network.peers import ANCHORS, NUM_CLASSES, random_objects

BATCH_SIZE = 5


def random_batch(seed, batch_size=BATCH_SIZE):
    """Return random objects and network outputs. The first image has no objects. Many predicted boxes are good."""
    generator = torch.Generator().manual_seed(seed)
    boxes_xyxy, labels = random_objects(generator, batch_size, 9)
    labels = labels.clamp(max=2)  # few classes, so that a class has several objects
    boxes_xyxy[0], labels[0] = 0, 0
    matched = match_anchors(boxes_xyxy, labels, ANCHORS, 0.4)
    offsets = encode_boxes(boxes_xyxy.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4)), ANCHORS)
    noise = torch.randn(batch_size, len(ANCHORS), 4, generator=generator)
    box_deltas = torch.where((matched >= 0)[..., None], offsets + noise, noise)
    class_logits = torch.randn(batch_size, len(ANCHORS), NUM_CLASSES + 1, generator=generator) * 2
    return {
        "box_deltas": box_deltas.requires_grad_(),
        "class_logits": class_logits.requires_grad_(),
        "matched": matched,
        "boxes_xyxy": boxes_xyxy,
        "labels": labels,
        "anchors_cxcywh": ANCHORS,
    }


def weights_of_image(iou, labels, objects, losses):
    """Return the weights of an image's positives as in the paper: ranks in each object, then in each class."""
    positives = range(len(iou))
    rank_in_object = [
        sum(objects[j] == objects[i] and (-iou[j], j) < (-iou[i], i) for j in positives) for i in positives
    ]
    keys = [(rank_in_object[i], -iou[i], i) for i in positives]
    ranks = [sum(labels[j] == labels[i] and keys[j] < keys[i] for j in positives) for i in positives]
    most = max(map(labels.count, labels))
    weights = [((most - rank) / most) ** 2 for rank in ranks]
    total, weighted = sum(losses), sum(w * loss for w, loss in zip(weights, losses, strict=True))
    return [w * total / weighted for w in weights]


def expected_losses(batch, box):
    """Return the classification loss and the additional box loss, image by image."""
    classification = additional = 0
    for matched, deltas, logits, boxes, labels in zip(
        *(batch[name] for name in ("matched", "box_deltas", "class_logits", "boxes_xyxy", "labels")), strict=True
    ):
        positives = (matched >= 0).nonzero()[:, 0]
        if not len(positives):
            continue
        objects = matched[positives]
        losses = F.cross_entropy(logits[positives], labels[objects], reduction="none")
        predicted = decode_boxes(deltas[positives], ANCHORS[positives])
        iou = box_iou(predicted, boxes[objects]).diagonal()
        weights = weights_of_image(*(x.tolist() for x in (iou, labels[objects], objects, losses)))
        background = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none")
        hardest = background.masked_fill(matched >= 0, -1).topk(min(3 * len(positives), len(logits) - len(positives)))
        classification += (torch.tensor(weights) * losses).sum() + hardest.values.sum()

        scores = logits[positives].softmax(dim=1)[range(len(positives)), labels[objects]]
        factors = 0.2 + 0.8 * scores
        factors = factors / factors.mean()
        if box == "giou":
            box_losses = generalized_box_iou_loss(predicted * 4096, boxes[objects] * 4096)
        else:
            targets = encode_boxes(boxes[objects], ANCHORS[positives])
            box_losses = F.smooth_l1_loss(deltas[positives], targets, reduction="none").sum(dim=1)
        additional += (factors * box_losses).sum()
    return {"classification": classification, "box_by_score": additional}


def losses_of(batch, **settings):
    return multibox_loss(**batch, negatives_per_positive=3, **settings)


def gradients(loss, batch):
    inputs = [batch["box_deltas"], batch["class_logits"]]
    return torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True)


@pytest.mark.usefixtures("code_path")
@pytest.mark.parametrize("box", ["smooth_l1", "giou"])
@pytest.mark.parametrize("seed", range(4))
def test_losses_and_gradients_equal_plain_loops_over_the_images(seed, box):
    batch = random_batch(seed)
    losses, expected = losses_of(batch, box=box, reweight="pisa"), expected_losses(batch, box)
    assert losses["num_positives"] == (batch["matched"] >= 0).sum() > 50
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
        torch.testing.assert_close(gradients(losses[name], batch), gradients(value, batch), atol=2e-6, rtol=1e-4)


def test_weights_of_a_small_example():
    # Image 1: object 0 has three positives, object 1 one positive of the same class, object 2 one of another class.
    # The ranks in class 1 are: object 0's best, object 1's best, then the others of object 0. Anchor 4 is negative.
    iou = torch.tensor([[0.3, 0.9, 0.7, 0.5, 1.0, 0.6], [0.0, 0.4, 0.0, 0.0, 0.0, 0.0]])
    labels = torch.tensor([[1, 1, 1, 2, 0, 1], [0, 1, 0, 0, 0, 0]])
    objects = torch.tensor([[0, 0, 1, 2, 0, 0], [0, 0, 0, 0, 0, 0]])
    classification = torch.tensor([[2.0, 1.0, 1.0, 1.0, 9.0, 0.0], [9.0, 3.0, 9.0, 9.0, 9.0, 9.0]])
    weights = importance_weights(iou, labels, objects, labels > 0, classification)
    factor = 5 / (2 / 16 + 1 + 9 / 16 + 1)  # old sum / new sum
    expected = [factor / 16, factor, factor * 9 / 16, factor, 1, factor / 4]
    torch.testing.assert_close(weights, torch.tensor([expected, [1, 1, 1, 1, 1, 1]]))


def test_equally_good_positives_are_ranked_in_order_and_the_most_frequent_class_sets_the_scale():
    weights = importance_weights(
        torch.full((1, 5), 0.5),
        torch.tensor([[1, 2, 2, 1, 2]]),
        torch.tensor([[0, 1, 1, 0, 1]]),
        torch.ones(1, 5, dtype=torch.bool),
        torch.ones(1, 5),
    )
    expected = torch.tensor([[9.0, 9, 4, 4, 1]])
    torch.testing.assert_close(weights, expected * 5 / expected.sum())


def test_without_a_loss_the_weights_are_finite():
    ones = torch.ones(1, 2, dtype=torch.int64)
    weights = importance_weights(torch.tensor([[0.2, 0.4]]), ones, 0 * ones, ones > 0, torch.zeros(1, 2))
    torch.testing.assert_close(weights, torch.tensor([[0.25, 1]]))


@pytest.mark.usefixtures("code_path")
@pytest.mark.parametrize("box", ["smooth_l1", "giou", "ciou"])
def test_classification_loss_and_box_loss_keep_their_values(box):
    batch = random_batch(seed=7)
    plain, weighted = losses_of(batch, box=box), losses_of(batch, box=box, reweight="pisa")
    assert weighted.keys() - plain.keys() == {"box_by_score"}
    torch.testing.assert_close({name: weighted[name] for name in plain}, plain)
    difference = gradients(weighted["classification"] - plain["classification"], batch)
    assert not difference[0].any()
    is_changed = difference[1].abs().amax(dim=-1) > 1e-4
    assert is_changed.any()
    assert not is_changed[batch["matched"] < 0].any()


@pytest.mark.usefixtures("code_path")
def test_additional_box_loss_lowers_the_scores_of_badly_located_positives():
    anchors = torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 3)
    target = torch.tensor([[[0.3, 0.3, 0.7, 0.7]]])  # the anchor
    batch = {
        "box_deltas": torch.tensor([[[0.0] * 4, [2.0, 0, 0, 0], [2.0, 0, 0, 0]]]).requires_grad_(),
        "class_logits": torch.zeros(1, 3, 2).requires_grad_(),
        "matched": torch.tensor([[0, 0, -1]]),
        "boxes_xyxy": target,
        "labels": torch.tensor([[1]]),
        "anchors_cxcywh": anchors,
    }
    loss = losses_of(batch, reweight="pisa")["box_by_score"]
    # The box losses of both positives are l = (0, 1.5), their weights are w / mean(w), with w = 0.2 + 0.8 p = 0.6.
    torch.testing.assert_close(loss, torch.tensor(1.5))
    by_score = gradients(loss, batch)[1][0, :, 1]
    # d/dp_i of sum(w l) / mean(w) is 0.8 / mean(w) * (l_i - mean(l)), and dp_i/dx_i is p (1 - p) = 1/4.
    torch.testing.assert_close(by_score, torch.tensor([-0.75, 0.75, 0]) * 0.8 / 0.6 / 4)


def test_weights_of_scores_have_mean_1_in_each_image():
    is_positive = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    weights = score_weights(torch.tensor([[1.0, 0.25, 0.9]] * 3), is_positive)
    torch.testing.assert_close(weights, torch.tensor([[1 / 0.7, 0.4 / 0.7, 0], [0, 1, 0], [0, 0, 0]]))


@pytest.mark.usefixtures("code_path")
def test_without_objects_all_losses_and_gradients_are_zero():
    batch = random_batch(seed=0)
    batch |= {
        "boxes_xyxy": torch.zeros(BATCH_SIZE, 1, 4),
        "labels": torch.zeros(BATCH_SIZE, 1, dtype=torch.int64),
        "matched": torch.full_like(batch["matched"], -1),
    }
    losses = losses_of(batch, reweight="pisa")
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0)
    total = losses["classification"] + losses["box"] + losses["box_by_score"]
    assert not any(gradient.any() for gradient in gradients(total, batch))
