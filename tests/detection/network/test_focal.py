import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from detection.network.losses import focal
from detection.network.losses.focal import focal_loss, quality_focal_loss
from detection.network.losses.rows import select_rows, used_rows
from tests.detection.network.peers import ANCHORS, NUM_CLASSES

SHAPE = (3, len(ANCHORS), NUM_CLASSES)


def random_logits(seed, scale):
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * scale).requires_grad_()


def random_rows(seed, share_of_positives=0.1):
    """Return the rows that a loss needs, all rows in order, and a target score for each anchor."""
    generator = torch.Generator().manual_seed(seed)
    is_positive = torch.rand(SHAPE[:2], generator=generator) < share_of_positives
    is_positive[0] = False
    matched = torch.randint(0, 4, SHAPE[:2], generator=generator).where(is_positive, -1)
    labels = torch.randint(1, NUM_CLASSES + 1, (SHAPE[0], 4), generator=generator)
    boxes_xyxy = torch.tensor([0.2, 0.2, 0.7, 0.7]).expand(SHAPE[0], 4, 4)
    targets = (matched, torch.zeros(*SHAPE[:2], 4), boxes_xyxy, labels, ANCHORS)
    quality = torch.rand(SHAPE[:2], generator=generator)
    quality[1, :50] = 0  # of a predicted box that does not overlap; the values of negatives have no effect
    return select_rows(used_rows(is_positive), *targets), select_rows(..., *targets), quality


def one_hot(rows):
    """Return target scores (B, A, num_classes) float64 of focal loss; zero for background."""
    return F.one_hot(rows.labels, NUM_CLASSES + 1)[..., 1:].double()


def quality_focal_reference(logits, rows, quality):
    """Return |q - p|^2 times the binary cross-entropy, summed, in float64."""
    logits, target = logits.double(), one_hot(rows) * quality[..., None]  # 0 for a negative
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((target - logits.sigmoid()).abs() ** 2 * cross_entropy).sum()


def assert_equal(ours, theirs, logits):
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-5)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=4e-6)


@pytest.mark.usefixtures("code_path")
@pytest.mark.parametrize("scale", [0.1, 3, 50, 1000])
def test_focal_loss_equals_torchvision(scale):
    logits, (rows, all_rows, _) = random_logits(1, scale), random_rows(1)
    ours = focal_loss(logits, rows)
    assert_equal(ours, sigmoid_focal_loss(logits.double(), one_hot(all_rows), reduction="sum"), logits)


@pytest.mark.usefixtures("code_path")
@pytest.mark.parametrize("scale", [0.1, 3, 50, 1000])
def test_quality_focal_loss_equals_its_formula(scale):
    logits, (rows, all_rows, quality) = random_logits(2, scale), random_rows(2)
    ours = quality_focal_loss(logits, rows, quality[rows.index])
    assert_equal(ours, quality_focal_reference(logits, all_rows, quality), logits)


@pytest.mark.usefixtures("code_path")
def test_losses_without_positives_equal_the_references():
    logits, (rows, all_rows, quality) = random_logits(3, 3), random_rows(3, share_of_positives=0)
    assert not all_rows.is_positive.any()
    assert_equal(
        focal_loss(logits, rows), sigmoid_focal_loss(logits.double(), one_hot(all_rows), reduction="sum"), logits
    )
    ours = quality_focal_loss(logits, rows, quality[rows.index])
    assert_equal(ours, quality_focal_reference(logits, all_rows, quality), logits)


def test_the_target_score_of_quality_focal_loss_is_its_minimum():
    _, rows, quality = random_rows(4)
    logits = quality[..., None].logit().expand(SHAPE).clone().requires_grad_()
    quality_focal_loss(logits, rows, quality).backward()
    is_label = one_hot(rows).bool() & (quality[..., None] > 0)
    assert is_label.any()
    torch.testing.assert_close(logits.grad[is_label], torch.zeros(int(is_label.sum())), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("code_path")
@pytest.mark.parametrize("loss", [focal_loss, quality_focal_loss])
def test_extreme_logits_have_finite_gradients(loss):
    rows, _, quality = random_rows(5)
    arguments = (rows,) if loss is focal_loss else (rows, quality[rows.index])
    for sign in (1, -1):
        logits = torch.full(SHAPE, sign * 60000.0, requires_grad=True)
        loss(logits, *arguments).backward()
        assert logits.grad.isfinite().all()


@pytest.mark.usefixtures("code_path")
def test_loss_of_negatives_and_its_gradient_equal_the_formula_in_float64(monkeypatch):
    monkeypatch.setattr(focal, "CPU_CHUNK", 7)  # parts of several sizes
    special = torch.tensor([-50.0, -19, -1, 0, 1, 19, 50])
    generator = torch.Generator().manual_seed(6)
    logits = torch.cat([special, torch.randn(20, generator=generator) * 3]).double().view(3, 9).requires_grad_()
    image, anchor, column = torch.tensor([[0, 2, 2], [1, 0, 0], [2, 0, 1]])
    logits = logits.detach().view(3, 3, 3).requires_grad_()

    def loss(logits):
        return focal._NegativeLoss.apply(logits, image, anchor, column)

    def formula(logits):
        return (logits.sigmoid() ** 2 * F.softplus(logits)).sum(), logits[image, anchor, column]

    torch.testing.assert_close(loss(logits), formula(logits), atol=0, rtol=1e-8)
    gradients = [
        torch.autograd.grad(3 * total + (pairs**2).sum(), logits)[0] for total, pairs in (loss(logits), formula(logits))
    ]
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-6)


def test_a_second_backward_pass_is_an_error():
    logits, (rows, _, _) = random_logits(8, 3), random_rows(8)
    loss = focal_loss(logits, rows)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_of_half_precision_logits_are_computed_in_float32(dtype, autocast):
    half, (rows, _, quality) = random_logits(7, 3).detach().to(dtype).requires_grad_(), random_rows(7)
    rounded = half.detach().float().requires_grad_()
    for loss, arguments in ((focal_loss, (rows,)), (quality_focal_loss, (rows, quality[rows.index]))):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = loss(half, *arguments)
        expected = loss(rounded, *arguments)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)
        gradient, expected_gradient = torch.autograd.grad(value, half)[0], torch.autograd.grad(expected, rounded)[0]
        torch.testing.assert_close(gradient, expected_gradient.to(dtype))
