import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, complete_box_iou_loss, generalized_box_iou_loss

from detection.network.boxes import decode_boxes, encode_boxes
from detection.network.losses.box_loss import BOX_LOSSES, predicted_iou
from detection.network.losses.rows import select_rows, used_rows
from tests.detection.network.peers import ANCHORS, random_objects

PIXELS = 4096  # torchvision adds 1e-7 to areas, which matters only in fractions of the image side
BATCH_SIZE = 4


def random_outputs(seed, deltas_scale=2.0):
    """Return random predictions and matches, as the arguments of select_rows. The first image has no positives."""
    generator = torch.Generator().manual_seed(seed)
    boxes_xyxy, labels = random_objects(generator, BATCH_SIZE, 5)
    boxes_xyxy[:, 0], labels[:, 0] = torch.tensor([0.1, 0.2, 0.5, 0.4]), 2
    is_positive = torch.rand(BATCH_SIZE, len(ANCHORS), generator=generator) < 0.3
    is_positive[0] = False
    matched = torch.randint(0, 5, is_positive.shape, generator=generator) % (labels > 0).sum(dim=1, keepdim=True)
    box_deltas = torch.randn(*is_positive.shape, 4, generator=generator) * deltas_scale
    return {
        "matched": matched.where(is_positive, -1),
        "box_deltas": box_deltas.requires_grad_(),
        "boxes_xyxy": boxes_xyxy,
        "labels": labels,
        "anchors_cxcywh": ANCHORS,
    }


def positives(outputs):
    """Return deltas, anchors and objects of all positives, in order, one row each, float64."""
    image, anchor = (outputs["matched"] >= 0).nonzero(as_tuple=True)
    boxes_xyxy = outputs["boxes_xyxy"][image, outputs["matched"][image, anchor]]
    return [x.double() for x in (outputs["box_deltas"][image, anchor], ANCHORS[anchor], boxes_xyxy)]


def reference_losses(box, deltas, anchors, boxes_xyxy):
    """Return the loss of each positive from PyTorch's and torchvision's functions."""
    if box == "smooth_l1":
        return F.smooth_l1_loss(deltas, encode_boxes(boxes_xyxy, anchors), reduction="none").sum(dim=1)
    function = {"giou": generalized_box_iou_loss, "ciou": complete_box_iou_loss}[box]
    return function(decode_boxes(deltas, anchors) * PIXELS, boxes_xyxy * PIXELS)


def rows_of(outputs):
    return select_rows(used_rows(outputs["matched"] >= 0), **outputs)


@pytest.mark.usefixtures("code_path")
@pytest.mark.parametrize("scale", [0.1, 2.0, 10.0])
@pytest.mark.parametrize("box", BOX_LOSSES)
def test_losses_and_gradients_equal_torchvision(box, scale):
    outputs = random_outputs(1, scale)
    rows = rows_of(outputs)
    losses, expected = BOX_LOSSES[box](rows).sum(dim=-1), reference_losses(box, *positives(outputs))
    torch.testing.assert_close(losses[rows.is_positive].double(), expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), outputs["box_deltas"])[0] for loss in (losses, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("box", BOX_LOSSES)
def test_losses_and_gradients_of_good_predictions_in_float64(box, noise):
    outputs = random_outputs(7, noise)
    _, anchors, boxes_xyxy = positives(outputs)
    errors = positives(outputs)[0].detach()
    rows = rows_of(outputs)
    deltas = [(encode_boxes(boxes_xyxy, anchors) + errors).requires_grad_() for _ in range(2)]
    ours = rows._replace(deltas=deltas[0], anchors_cxcywh=anchors, boxes_xyxy=boxes_xyxy)
    expected = reference_losses(box, deltas[1], anchors, boxes_xyxy)
    losses = BOX_LOSSES[box](ours).sum(dim=-1)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(loss.sum(), d)[0] for loss, d in zip((losses, expected), deltas, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("box", BOX_LOSSES)
def test_negative_rows_have_exactly_zero_loss_and_gradient(box):
    outputs = random_outputs(2, deltas_scale=20.0)
    rows = select_rows(..., **outputs)
    losses = BOX_LOSSES[box](rows).sum(dim=-1)
    losses.sum().backward()
    assert not losses[~rows.is_positive].any()
    gradient = outputs["box_deltas"].grad
    assert not gradient[~rows.is_positive].any()
    assert gradient[rows.is_positive].any()


@pytest.mark.usefixtures("code_path")
@pytest.mark.parametrize("box", BOX_LOSSES)
@pytest.mark.parametrize("deltas", [0.0, 300.0, -300.0, 60000.0, -60000.0])
def test_degenerate_predictions_have_finite_losses_and_gradients(box, deltas):
    outputs = random_outputs(3)
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [-1, 1, -1, 1], [0, 0, 1, 1]])
    outputs["box_deltas"] = (signs.repeat(len(ANCHORS) // 4, 1)[None] * deltas).repeat(4, 1, 1).requires_grad_()
    losses = BOX_LOSSES[box](rows_of(outputs))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert outputs["box_deltas"].grad.isfinite().all()


@pytest.mark.parametrize("box", BOX_LOSSES)
def test_a_perfect_prediction_has_no_loss(box):
    outputs = random_outputs(4)
    matched = outputs["matched"].clamp(min=0)[..., None].expand(-1, -1, 4)
    outputs["box_deltas"] = encode_boxes(outputs["boxes_xyxy"].gather(1, matched), ANCHORS).requires_grad_()
    losses = BOX_LOSSES[box](rows_of(outputs))
    torch.testing.assert_close(losses, torch.zeros_like(losses), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("code_path")
def test_predicted_iou_equals_torchvision():
    outputs = random_outputs(5, deltas_scale=1.0)
    rows = rows_of(outputs)
    deltas, anchors, boxes_xyxy = positives(outputs)
    expected = box_iou(decode_boxes(deltas, anchors), boxes_xyxy).diagonal()
    iou = predicted_iou(rows)
    torch.testing.assert_close(iou[rows.is_positive].double(), expected.detach(), rtol=1e-4, atol=1e-6)
    assert not iou[~rows.is_positive].any()
    assert not iou.requires_grad


@pytest.mark.parametrize("index", [..., "columns"])
def test_rows_have_the_values_of_the_selected_anchors(index):
    outputs = random_outputs(6)
    if index == "columns":
        index = (torch.arange(BATCH_SIZE)[:, None], torch.arange(7).expand(BATCH_SIZE, -1))
    outputs["box_deltas"] = outputs["box_deltas"].detach().bfloat16()
    rows = select_rows(index, **outputs)
    matched = outputs["matched"][index]
    assert torch.equal(rows.is_positive, matched >= 0)
    assert rows.deltas.dtype == torch.float32
    assert torch.equal(rows.deltas, outputs["box_deltas"][index].float())
    for image, row in (rows.is_positive).nonzero().tolist():
        assert rows.objects[image, row] == matched[image, row]
        assert rows.labels[image, row] == outputs["labels"][image, matched[image, row]]
        assert torch.equal(rows.boxes_xyxy[image, row], outputs["boxes_xyxy"][image, matched[image, row]])
        assert torch.equal(rows.anchors_cxcywh[image, row], ANCHORS[row])
    assert not rows.labels[~rows.is_positive].any()
