"""Post-processing from network outputs to detections, compared with torchvision's SSD.postprocess_detections.

    OMP_NUM_THREADS=1 python -m benchmarks.postprocess

One image has 8,732 default boxes and 80 classes. The settings are torchvision's: score 0.01, IoU 0.45, 200 detections.
There are three kinds of random outputs:

trained    objects and noise; near an object, the logits of its class are high and the logits of a wrong class medium
confident  like trained, but with no wrong class and less noise; only a few pairs near objects reach the threshold
untrained  random logits; about 270,000 pairs of anchor and class reach the threshold

The detections must have the same number, classes and order (except for ties), scores equal to 1e-6, and boxes equal to
1/100 of a pixel. Takes a minute.
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou

from benchmarks.comparison import Page, Row, run_benchmark, time_alternating
from benchmarks.peers import ANCHORS, ANCHORS_XYXY, NUM_CLASSES, SIDE, torchvision_ssd
from detection.network.boxes import encode_boxes
from detection.network.postprocess import RawDetections, postprocess
from engine.command import RunError

OBJECTS, SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS = 7, 0.01, 0.45, 200
TARGETS = {"trained": 3.0, "confident": 1.8, "untrained": 12.0}
SEEDS, ROUNDS = range(4), 15


def random_outputs(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return random box_deltas (1, A, 4) and class_logits (1, A, 81) of one image. kind: see the module docstring."""
    generator = torch.Generator().manual_seed(seed)
    box_deltas = torch.randn(1, len(ANCHORS), 4, generator=generator) / 2
    class_logits = torch.randn(1, len(ANCHORS), NUM_CLASSES + 1, generator=generator)
    if kind == "untrained":
        return box_deltas, class_logits
    background, right, wrong, box_noise = (8, 10, 7, 0.4) if kind == "trained" else (12, 14, 0, 0.15)
    size = (torch.randn(OBJECTS, 2, generator=generator) * 0.7 - 1.4).exp().clamp(0.04, 0.9)
    corner = torch.rand(OBJECTS, 2, generator=generator) * (1 - size)
    boxes_xyxy = torch.cat([corner, corner + size], dim=1)
    labels, wrong_labels = torch.randint(1, NUM_CLASSES + 1, (2, OBJECTS), generator=generator)

    overlap, nearest = box_iou(boxes_xyxy, ANCHORS_XYXY).max(dim=0)
    near = (overlap > 0.25).nonzero()[:, 0]
    strength, nearest = (overlap[near] - 0.25) / 0.5, nearest[near]
    class_logits[..., 0] += background
    class_logits[0, near, labels[nearest]] += right * strength
    class_logits[0, near, wrong_labels[nearest]] += wrong * strength
    noise = torch.randn(len(near), 4, generator=generator) * box_noise
    box_deltas[0, near] = encode_boxes(boxes_xyxy[nearest], ANCHORS[near]) + noise
    return box_deltas, class_logits


def check_equal(ours: RawDetections, theirs: dict[str, Tensor], what: str) -> None:
    """Raise RunError if the detections differ, other than in the order of equal scores."""
    ours_order, theirs_order = (best_first(ours.scores, ours.labels), best_first(theirs["scores"], theirs["labels"]))
    if ours.labels[ours_order].tolist() != theirs["labels"][theirs_order].tolist():
        raise RunError(f"{what}: our {len(ours.labels)} labels differ from torchvision's {len(theirs['labels'])}")
    score_error = (ours.scores[ours_order] - theirs["scores"][theirs_order]).abs().max()
    box_error = (ours.boxes_xyxy[ours_order] * SIDE - theirs["boxes"][theirs_order]).abs().max()
    if score_error > 1e-6 or box_error > 0.01:
        raise RunError(f"{what}: scores differ from torchvision's by {score_error:.2g}, boxes by {box_error:.2g} px")


def best_first(scores: Tensor, labels: Tensor) -> list[int]:
    """Return the order by descending score, then by class, because torchvision's sort of equal scores is unstable."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index].item(), labels[index].item()))


def measure(device: torch.device) -> Page:
    """Time torchvision's and our post-processing on each kind of outputs. Raises RunError if the detections differ."""
    settings = {"score_threshold": SCORE_THRESHOLD, "nms_iou": NMS_IOU, "max_detections": MAX_DETECTIONS}
    ssd = torchvision_ssd(score_thresh=SCORE_THRESHOLD, nms_thresh=NMS_IOU, detections_per_img=MAX_DETECTIONS)
    rows = []
    for kind, target in TARGETS.items():
        images = [random_outputs(kind, seed) for seed in SEEDS]

        def by_torchvision(images=images) -> list[dict[str, Tensor]]:
            outputs = [{"bbox_regression": deltas, "cls_logits": logits} for deltas, logits in images]
            return [ssd.postprocess_detections(image, [ANCHORS_XYXY * SIDE], [(SIDE, SIDE)])[0] for image in outputs]

        def by_ours(images=images) -> list[RawDetections]:
            return [postprocess(*image, ANCHORS, **settings)[0] for image in images]

        pairs = sum((logits.softmax(-1)[..., 1:] >= SCORE_THRESHOLD).sum().item() for _, logits in images) / len(images)
        detections = by_ours()
        for seed, ours, theirs in zip(SEEDS, detections, by_torchvision(), strict=True):
            check_equal(ours, theirs, f"{kind}, seed {seed}")
        count = sum(len(image.labels) for image in detections) / len(detections)
        theirs, ours = (1000 * s / len(images) for s in time_alternating([by_torchvision, by_ours], ROUNDS))
        what = f"{kind}, score >= {SCORE_THRESHOLD}: {pairs:,.0f} pairs, {count:.0f} detections"
        rows.append(Row(what, "torchvision", theirs, ours, "ms", target))
    text = f"""# Post-processing

One image of 8,732 boxes and {NUM_CLASSES} classes, mean of {len(SEEDS)} images; process time. The detections equal \
torchvision's: the same number, order and classes, scores to 1e-6, boxes to 1/100 of a pixel.

{{rows}}
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure)
