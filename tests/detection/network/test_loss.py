import itertools
import shutil
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss

from detection.network.assignment.matching import match_anchors
from detection.network.boxes import decode_boxes, encode_boxes
from detection.network.loss import Criterion, LossConfig, constant_predictor_loss, multibox_loss
from tests.detection.network import peers
from tests.detection.network.peers import NUM_CLASSES, OperatorCount, random_objects, torchvision_ssd

# Corners and centres on a grid of 1/1024 are exact in float32, so both libraries start from the same numbers.
ANCHORS = (peers.ANCHORS * 512).round() / 512
CELLS = tuple(rows * columns for rows, columns in peers.GRIDS)

SWITCHES = ("classification", "assignment", "box", "reweight")


def combinations():
    """Return the values of SWITCHES of every criterion that LossConfig allows, and of every one that it refuses."""
    allowed, refused = [], []
    for values in itertools.product(*(get_args(LossConfig.model_fields[name].annotation) for name in SWITCHES)):
        try:
            LossConfig(**dict(zip(SWITCHES, values, strict=True)))
            allowed.append(values)
        except ValidationError:
            refused.append(values)
    return allowed, refused


ALLOWED, REFUSED = combinations()
every_combination = pytest.mark.parametrize("values", ALLOWED, ids="-".join)


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


@pytest.mark.usefixtures("code_path")
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


@pytest.mark.usefixtures("code_path")
def test_without_objects_loss_and_gradients_are_zero():
    batch = random_batch(seed=0)
    batch["boxes_xyxy"], batch["labels"] = torch.zeros(6, 1, 4), torch.zeros(6, 1, dtype=torch.int64)
    losses = losses_of(batch)
    assert [loss.item() for loss in losses.values()] == [0, 0, 0]
    assert all((gradient == 0).all() for gradient in gradients(losses["box"] + losses["classification"], batch))


@pytest.mark.usefixtures("code_path")
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


def criterion_of(values, **settings):
    return Criterion(CELLS, **LossConfig(**dict(zip(SWITCHES, values, strict=True)), **settings).model_dump())


def criterion_batch(criterion, seed, batch_size=6, max_objects=7):
    """Return a batch as arguments of the criterion. The predicted boxes are near the default boxes."""
    batch = random_batch(seed, batch_size, max_objects)
    logits = batch["class_logits"]
    return {
        "box_deltas": (batch["box_deltas"].detach() / 2).requires_grad_(),
        "class_logits": (logits if criterion.classification == "multibox" else logits[..., 1:])
        .detach()
        .requires_grad_(),
        "boxes_xyxy": batch["boxes_xyxy"],
        "labels": batch["labels"],
    }


def evaluate(criterion, batch, anchors=ANCHORS):
    """Return losses, count, and the gradients of the sum of the losses."""
    losses, count = criterion(**batch, anchors_cxcywh=anchors)
    return losses, count, gradients(sum(losses.values()), batch)


@every_combination
def test_every_criterion_is_equal_on_a_cpu_and_on_an_accelerator(values, monkeypatch):
    criterion = criterion_of(values)
    batch = criterion_batch(criterion, seed=1)
    on_cpu = evaluate(criterion, batch)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    torch.testing.assert_close(evaluate(criterion, batch), on_cpu, rtol=1e-5, atol=2e-6)
    losses, count, tensors = on_cpu
    assert all(tensor.isfinite().all() for tensor in (*losses.values(), *tensors))
    assert all(loss > 0 for loss in losses.values())
    assert count > 0
    assert all(tensor.any() for tensor in tensors)


@pytest.mark.usefixtures("code_path")
@every_combination
def test_without_objects_only_sigmoids_are_trained(values):
    criterion = criterion_of(values)
    batch = criterion_batch(criterion, seed=2)
    batch |= {"boxes_xyxy": torch.zeros(6, 1, 4), "labels": torch.zeros(6, 1, dtype=torch.int64)}
    losses, count, (box_gradient, class_gradient) = evaluate(criterion, batch)
    assert count == 0
    assert not any(loss for name, loss in losses.items() if name.startswith("box"))
    assert not box_gradient.any()
    has_sigmoids = criterion.classification != "multibox"
    assert (losses["classification"] > 0) == has_sigmoids
    assert class_gradient.isfinite().all()
    assert class_gradient.any() == has_sigmoids


@pytest.mark.usefixtures("code_path")
@every_combination
def test_images_do_not_affect_each_other(values):
    criterion = criterion_of(values)
    batch = criterion_batch(criterion, seed=3, batch_size=8)
    losses, count, tensors = evaluate(criterion, batch)
    parts = [evaluate(criterion, {name: tensor[part] for name, tensor in batch.items()}) for part in PARTS]
    for name, loss in losses.items():
        torch.testing.assert_close(sum(part[0][name] for part in parts), loss, rtol=2e-6, atol=0)
    torch.testing.assert_close(sum(part[1] for part in parts), count, rtol=1e-6, atol=0)
    for i, tensor in enumerate(tensors):
        torch.testing.assert_close(torch.cat([part[2][i] for part in parts]), tensor, rtol=1e-5, atol=1e-7)


PARTS = (slice(0, 1), slice(1, 4), slice(4, 8))  # the first image has no objects


@every_combination
def test_operators_of_every_criterion_are_independent_of_batch_size_and_none_synchronises(values):
    criterion = criterion_of(values)

    def count(batch_size):
        batch = on_meta(criterion_batch(criterion, 4, batch_size))
        with OperatorCount() as operators:
            losses, _ = criterion(**batch, anchors_cxcywh=ANCHORS.to("meta"))
            sum(losses.values()).backward()
        return operators.count

    assert count(2) == count(32)


@pytest.mark.parametrize("factor", [1, 10_000])
@every_combination
def test_losses_of_half_precision_outputs_are_computed_in_float32_and_finite(values, factor):
    criterion = criterion_of(values)
    batch = criterion_batch(criterion, seed=5)
    for dtype in (torch.bfloat16, torch.float16):
        outputs = {name: batch[name].detach() * factor for name in ("box_deltas", "class_logits")}
        half = {name: tensor.clamp(-60000, 60000).to(dtype).requires_grad_() for name, tensor in outputs.items()}
        rounded = {name: tensor.detach().float().requires_grad_() for name, tensor in half.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, count, tensors = evaluate(criterion, batch | half)
        expected_losses, expected_count, expected = evaluate(criterion, batch | rounded)
        assert all(tensor.isfinite().all() for tensor in (*losses.values(), *tensors))
        torch.testing.assert_close((losses, count), (expected_losses, expected_count))
        # The gradients of classification and box_by_score are rounded before they are added.
        torch.testing.assert_close(tensors, tuple(tensor.to(dtype) for tensor in expected), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("values", [ALLOWED[0], ("multibox", "atss", "giou", "pisa")], ids="-".join)
def test_box_weight_scales_all_box_losses_and_nothing_else(values):
    batch = criterion_batch(criterion_of(values), seed=6)
    once, count, _ = evaluate(criterion_of(values), batch)
    thrice, same_count, _ = evaluate(criterion_of(values, box_weight=3), batch)
    assert same_count == count
    factors = {name: 1 if name == "classification" else 3 for name in once}
    torch.testing.assert_close(thrice, {name: factors[name] * loss for name, loss in once.items()})


def test_default_criterion_is_the_multibox_loss_of_matched_boxes():
    for settings in ({}, {"match_iou": 0.3, "negatives_per_positive": 1}):
        criterion = criterion_of(ALLOWED[0], **settings)
        assert criterion == Criterion(CELLS, **settings)
        batch = random_batch(7)
        losses, count = criterion(**batch, anchors_cxcywh=ANCHORS)
        matched = match_anchors(batch["boxes_xyxy"], batch["labels"], ANCHORS, criterion.match_iou)
        expected = multibox_loss(
            **batch, matched=matched, anchors_cxcywh=ANCHORS, negatives_per_positive=criterion.negatives_per_positive
        )
        assert losses | {"num_positives": count} == expected


def test_task_aligned_losses_are_weighted_and_counted_by_the_alignment():
    criterion = criterion_of(("quality_focal", "task_aligned", "giou", "none"))
    batch = criterion_batch(criterion, seed=8)
    matched, alignment = criterion.assign(**batch, anchors_cxcywh=ANCHORS)
    losses, count = criterion(**batch, anchors_cxcywh=ANCHORS)
    torch.testing.assert_close(count, alignment.sum())
    image, anchor = (matched >= 0).nonzero(as_tuple=True)
    objects = batch["boxes_xyxy"][image, matched[image, anchor]]
    predicted = decode_boxes(batch["box_deltas"][image, anchor], ANCHORS[anchor])
    box_losses = generalized_box_iou_loss(predicted * 4096, objects * 4096)
    torch.testing.assert_close(losses["box"], (alignment[image, anchor] * box_losses).sum())

    target = torch.zeros_like(batch["class_logits"])
    target[image, anchor, batch["labels"][image, matched[image, anchor]] - 1] = alignment[image, anchor]
    cross_entropy = F.binary_cross_entropy_with_logits(batch["class_logits"], target, reduction="none")
    expected = ((target - batch["class_logits"].sigmoid()) ** 2 * cross_entropy).sum()
    torch.testing.assert_close(losses["classification"], expected)


@pytest.mark.parametrize("assignment", ["iou", "atss"])
def test_quality_focal_targets_are_the_predicted_ious(assignment):
    criterion = criterion_of(("quality_focal", assignment, "smooth_l1", "none"))
    batch = criterion_batch(criterion, seed=9)
    matched, alignment = criterion.assign(**batch, anchors_cxcywh=ANCHORS)
    assert alignment is None
    image, anchor = (matched >= 0).nonzero(as_tuple=True)
    objects = batch["boxes_xyxy"][image, matched[image, anchor]]
    predicted = decode_boxes(batch["box_deltas"][image, anchor], ANCHORS[anchor])
    target = torch.zeros_like(batch["class_logits"])
    iou = box_iou(predicted, objects).diagonal().detach()
    target[image, anchor, batch["labels"][image, matched[image, anchor]] - 1] = iou
    cross_entropy = F.binary_cross_entropy_with_logits(batch["class_logits"], target, reduction="none")
    expected = ((target - batch["class_logits"].sigmoid()) ** 2 * cross_entropy).sum()
    losses, count, (box_gradient, class_gradient) = evaluate(criterion, batch)
    torch.testing.assert_close(losses["classification"], expected)
    assert count == len(image)
    expected_gradients = gradients(expected + losses_box(batch, image, anchor, objects), batch)
    torch.testing.assert_close((box_gradient, class_gradient), expected_gradients, rtol=1e-4, atol=2e-6)


def losses_box(batch, image, anchor, objects):
    """Return smooth L1 of the positives, summed."""
    return F.smooth_l1_loss(batch["box_deltas"][image, anchor], encode_boxes(objects, ANCHORS[anchor]), reduction="sum")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler warns that selecting rows on a CPU breaks the graph
@pytest.mark.slow
@pytest.mark.usefixtures("compiler_cache")
@pytest.mark.parametrize(
    "values",
    [
        ALLOWED[0],
        ("multibox", "iou", "giou", "pisa"),
        ("focal", "atss", "smooth_l1", "none"),
        ("quality_focal", "task_aligned", "ciou", "none"),
    ],
    ids="-".join,
)
def test_compiled_criterion_equals_the_eager_one_at_any_padding(values):
    criterion = criterion_of(values)
    compiled = torch.compile(criterion, dynamic=True)  # as in DetectionTask.compile
    for max_objects in (7, 12):
        batch = criterion_batch(criterion, seed=6, max_objects=max_objects)
        torch.testing.assert_close(evaluate(compiled, batch), evaluate(criterion, batch), rtol=1e-5, atol=2e-6)


def test_only_task_aligned_and_pisa_with_a_different_classification_are_refused():
    assert [
        values
        for values in itertools.product(*(get_args(LossConfig.model_fields[name].annotation) for name in SWITCHES))
        if (values[1] == "task_aligned" and values[0] != "quality_focal")
        or (values[3] == "pisa" and values[0] != "multibox")
    ] == REFUSED
    assert len(ALLOWED) == 27


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"assignment": "task_aligned"}, ["task_aligned", "quality_focal", "multibox"]),
        ({"assignment": "task_aligned", "classification": "focal"}, ["task_aligned", "quality_focal", "focal"]),
        ({"reweight": "pisa", "classification": "focal"}, ["pisa", "multibox", "focal"]),
        ({"reweight": "pisa", "classification": "quality_focal"}, ["pisa", "multibox", "quality_focal"]),
    ],
)
def test_a_refusal_is_one_line_with_both_fields(settings, names):
    with pytest.raises(ValidationError) as error:
        LossConfig(**settings)
    (problem,) = error.value.errors()
    assert "\n" not in problem["msg"]
    assert all(name in problem["msg"] for name in [*names, "classification", *(settings.keys() - {"classification"})])


@pytest.mark.parametrize(
    ("classification", "score_function"), [("multibox", "softmax"), ("focal", "sigmoid"), ("quality_focal", "sigmoid")]
)
def test_score_function_follows_from_the_classification_loss(classification, score_function):
    assert LossConfig(classification=classification).score_function == score_function


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
