import shutil

import pytest
import torch
from torchvision.ops import box_convert

from detection.network.loss import constant_predictor_loss, multibox_loss
from detection.network.matching import match_anchors
from tests.detection.network import peers
from tests.detection.network.peers import NUM_CLASSES, OperatorCount, random_objects, torchvision_ssd

# Corners and centres on a grid of 1/1024 are exact in float32, so both libraries start from the same numbers.
ANCHORS = (peers.ANCHORS * 512).round() / 512


def random_batch(seed, batch_size=6, max_objects=7):
    """Return zero-padded boxes and labels (none in the first image), and network outputs that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    boxes_xyxy, labels = random_objects(generator, batch_size, max_objects, quantum=1 / 1024)
    boxes_xyxy[0], labels[0] = 0, 0
    box_deltas = torch.randn(batch_size, len(ANCHORS), 4, generator=generator) * 2
    class_logits = torch.randn(batch_size, len(ANCHORS), NUM_CLASSES + 1, generator=generator) * 3
    return {
        "boxes_xyxy": boxes_xyxy,
        "labels": labels,
        "box_deltas": box_deltas.requires_grad_(),
        "class_logits": class_logits.requires_grad_(),
    }


def losses_of(batch, anchors=ANCHORS, negatives_per_positive=3):
    matched = match_anchors(batch["boxes_xyxy"], batch["labels"], anchors)
    return multibox_loss(
        **batch, matched=matched, anchors_cxcywh=anchors, negatives_per_positive=negatives_per_positive
    )


def torchvision_loss(batch, matched, negatives_per_positive):
    """Return torchvision's losses, which are already divided by the number of positives in the batch."""
    ssd = torchvision_ssd(300, positive_fraction=1 / (1 + negatives_per_positive))
    targets = [
        {"boxes": boxes[labels > 0], "labels": labels[labels > 0]}
        for boxes, labels in zip(batch["boxes_xyxy"], batch["labels"], strict=True)
    ]
    outputs = {"bbox_regression": batch["box_deltas"], "cls_logits": batch["class_logits"]}
    anchors_xyxy = box_convert(ANCHORS, "cxcywh", "xyxy")
    return ssd.compute_loss(targets, outputs, [anchors_xyxy] * len(matched), list(matched))


def gradients(loss, batch):
    return torch.autograd.grad(loss, [batch["box_deltas"], batch["class_logits"]])


@pytest.fixture(params=["CPU", "accelerator"])
def _code_path(request, monkeypatch):
    """Run both code paths: trained rows selected (CPU), and all rows with untrained ones masked (GPU)."""
    if request.param == "accelerator":
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)


@pytest.mark.usefixtures("_code_path")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("negatives_per_positive", [1, 3])
def test_loss_and_gradients_equal_torchvision(seed, negatives_per_positive):
    batch = random_batch(seed)
    matched = match_anchors(batch["boxes_xyxy"], batch["labels"], ANCHORS)
    ours = losses_of(batch, negatives_per_positive=negatives_per_positive)
    theirs = torchvision_loss(batch, matched, negatives_per_positive)
    num_positives = ours["num_positives"]
    assert num_positives == (matched >= 0).sum() > 0

    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(ours["box"] / num_positives, theirs["bbox_regression"], **close)
    torch.testing.assert_close(ours["classification"] / num_positives, theirs["classification"], **close)
    our_gradients = gradients((ours["box"] + ours["classification"]) / num_positives, batch)
    their_gradients = gradients(theirs["bbox_regression"] + theirs["classification"], batch)
    torch.testing.assert_close(our_gradients, their_gradients, **close)


@pytest.mark.usefixtures("_code_path")
def test_without_objects_loss_and_gradients_are_zero():
    batch = random_batch(seed=0)
    batch["boxes_xyxy"], batch["labels"] = torch.zeros(6, 1, 4), torch.zeros(6, 1, dtype=torch.int64)
    losses = losses_of(batch)
    assert [loss.item() for loss in losses.values()] == [0, 0, 0]
    assert all((gradient == 0).all() for gradient in gradients(losses["box"] + losses["classification"], batch))


@pytest.mark.usefixtures("_code_path")
def test_too_few_negatives_do_not_make_a_positive_count_twice():
    anchors = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]])
    batch = {
        "boxes_xyxy": torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]),
        "labels": torch.tensor([[1]]),
        "box_deltas": torch.zeros(1, 3, 4),
        "class_logits": torch.zeros(1, 3, 2),
    }
    losses = losses_of(batch, anchors)
    assert losses["num_positives"] == 2
    torch.testing.assert_close(losses["classification"], 3 * torch.tensor(2.0).log())


@pytest.mark.parametrize("autocast", [False, True])
def test_loss_of_half_precision_outputs_is_computed_in_float32(autocast):
    batch = random_batch(seed=3)
    half = batch | {name: batch[name].detach().bfloat16() for name in ("box_deltas", "class_logits")}
    rounded = batch | {name: half[name].float() for name in ("box_deltas", "class_logits")}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = losses_of(half)
    assert losses["box"].dtype == losses["classification"].dtype == torch.float32
    torch.testing.assert_close(losses, losses_of(rounded))


def on_meta(batch):
    """Move the batch to the meta device, which has shapes without values and takes the code path of a GPU."""
    return {name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for name, tensor in batch.items()}


def count_operators(batch, anchors=ANCHORS):
    with OperatorCount() as operators:
        losses = losses_of(batch, anchors)
        (losses["box"] + losses["classification"]).backward()
    return operators.count


def test_number_of_gpu_operators_is_independent_of_batch_size_and_none_synchronises():
    # A meta tensor has no values, so any .item(), nonzero or boolean selection would raise.
    small, large = (count_operators(on_meta(random_batch(4, size)), ANCHORS.to("meta")) for size in (2, 32))
    assert small == large


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler warns that selecting rows on a CPU breaks the graph
@pytest.mark.slow
@pytest.mark.usefixtures("compiler_cache")
def test_compiled_matching_and_loss_equal_eager_ones_at_any_padding():
    def total(batch):
        losses = losses_of(batch)
        return losses["box"] + losses["classification"]

    compiled = torch.compile(total)
    for max_objects in (7, 12):
        batch = random_batch(seed=6, max_objects=max_objects)
        for name in ("boxes_xyxy", "labels"):
            torch._dynamo.maybe_mark_dynamic(batch[name], 1)
        torch.testing.assert_close(gradients(compiled(batch), batch), gradients(total(batch), batch))


@pytest.mark.parametrize("negatives_per_positive", [1, 3])
def test_constant_predictor_loss_equals_the_minimum_found_by_optimisation(negatives_per_positive):
    batch = random_batch(seed=6)
    matched = match_anchors(batch["boxes_xyxy"], batch["labels"], ANCHORS)
    positives = torch.where(matched >= 0, batch["labels"].gather(1, matched.clamp(min=0)), 0)
    class_counts = positives.flatten().bincount(minlength=NUM_CLASSES + 1)[1:]

    logits = torch.zeros(NUM_CLASSES + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss_per_positive():
        batch["class_logits"] = logits.expand(*matched.shape, -1)
        losses = losses_of(batch, negatives_per_positive=negatives_per_positive)
        return losses["classification"] / losses["num_positives"]

    def closure():
        optimizer.zero_grad()
        loss = loss_per_positive()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = constant_predictor_loss(class_counts, negatives_per_positive)
    assert loss_per_positive().item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("class_counts", [[], [0, 0]])
def test_constant_predictor_loss_needs_an_object(class_counts):
    with pytest.raises(ValueError, match="expected at least one object"):
        constant_predictor_loss(class_counts, 3)
