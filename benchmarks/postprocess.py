"""From the network's output to detections, beside torchvision's SSD.postprocess_detections.

    OMP_NUM_THREADS=1 python -m benchmarks.postprocess

One image of 8,732 default boxes and 80 classes at torchvision's thresholds (score 0.01, IoU 0.45, 200 detections).
Three kinds of drawn outputs:

trained    objects among noise: near an object its class rises, less so a wrong one, and boxes scatter around it
confident  the same without doubt: few pairs reach the threshold, and they lie on the objects
untrained  random logits: 270,000 pairs of anchor and class reach the threshold

Detections must have the same number, order (but of equal scores) and classes, scores equal to 1e-6 and boxes to 1/100
of a pixel. Takes a minute.
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou

from benchmarks.comparison import Page, Row, run_benchmark, turn_by_turn
from benchmarks.peers import ANCHORS, ANCHORS_XYXY, NUM_CLASSES, SIDE, torchvision_ssd
from detection.network.boxes import encode_boxes
from detection.network.postprocess import RawDetections, postprocess
from engine.command import RunError

OBJECTS, SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS = 7, 0.01, 0.45, 200
ASKED = {"trained": 3.0, "confident": 1.8, "untrained": 12.0}
SEEDS, ROUNDS = range(4), 15


def draw(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return box_deltas (1, A, 4) and class_logits (1, A, 81) of one image, as the module describes them."""
    generator = torch.Generator().manual_seed(seed)
    box_deltas = torch.randn(1, len(ANCHORS), 4, generator=generator) / 2
    class_logits = torch.randn(1, len(ANCHORS), NUM_CLASSES + 1, generator=generator)
    if kind == "untrained":
        return box_deltas, class_logits
    background, rise, doubt, scatter = (8, 10, 7, 0.4) if kind == "trained" else (12, 14, 0, 0.15)
    size = (torch.randn(OBJECTS, 2, generator=generator) * 0.7 - 1.4).exp().clamp(0.04, 0.9)
    corner = torch.rand(OBJECTS, 2, generator=generator) * (1 - size)
    boxes_xyxy = torch.cat([corner, corner + size], dim=1)
    labels, mistaken = torch.randint(1, NUM_CLASSES + 1, (2, OBJECTS), generator=generator)

    overlap, nearest = box_iou(boxes_xyxy, ANCHORS_XYXY).max(dim=0)
    near = (overlap > 0.25).nonzero()[:, 0]
    strength, nearest = (overlap[near] - 0.25) / 0.5, nearest[near]
    class_logits[..., 0] += background
    class_logits[0, near, labels[nearest]] += rise * strength
    class_logits[0, near, mistaken[nearest]] += doubt * strength
    noise = torch.randn(len(near), 4, generator=generator) * scatter
    box_deltas[0, near] = encode_boxes(boxes_xyxy[nearest], ANCHORS[near]) + noise
    return box_deltas, class_logits


def check_equal(ours: RawDetections, theirs: dict[str, Tensor], what: str) -> None:
    """Raise RunError if the detections differ by more than the order of equal scores."""
    ours_order, theirs_order = (best_first(ours.scores, ours.labels), best_first(theirs["scores"], theirs["labels"]))
    if ours.labels[ours_order].tolist() != theirs["labels"][theirs_order].tolist():
        raise RunError(f"{what}: {len(ours.labels)} detections, torchvision has {len(theirs['labels'])}, or others")
    score_error = (ours.scores[ours_order] - theirs["scores"][theirs_order]).abs().max()
    box_error = (ours.boxes_xyxy[ours_order] * SIDE - theirs["boxes"][theirs_order]).abs().max()
    if score_error > 1e-6 or box_error > 0.01:
        raise RunError(f"{what}: scores differ from torchvision's by {score_error:.2g}, boxes by {box_error:.2g} px")


def best_first(scores: Tensor, labels: Tensor) -> list[int]:
    """Order by falling score, equal ones by class: torchvision leaves these to an unstable sort."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index].item(), labels[index].item()))


def measure(device: torch.device) -> Page:
    """Compare. Raises RunError if the detections differ."""
    settings = {"score_threshold": SCORE_THRESHOLD, "nms_iou": NMS_IOU, "max_detections": MAX_DETECTIONS}
    ssd = torchvision_ssd(score_thresh=SCORE_THRESHOLD, nms_thresh=NMS_IOU, detections_per_img=MAX_DETECTIONS)
    rows = []
    for kind, asked in ASKED.items():
        images = [draw(kind, seed) for seed in SEEDS]

        def by_torchvision(images=images) -> list[dict[str, Tensor]]:
            outputs = [{"bbox_regression": deltas, "cls_logits": logits} for deltas, logits in images]
            return [ssd.postprocess_detections(image, [ANCHORS_XYXY * SIDE], [(SIDE, SIDE)])[0] for image in outputs]

        def by_us(images=images) -> list[RawDetections]:
            return [postprocess(*image, ANCHORS, **settings)[0] for image in images]

        pairs = sum((logits.softmax(-1)[..., 1:] >= SCORE_THRESHOLD).sum().item() for _, logits in images) / len(images)
        found = by_us()
        for seed, ours, theirs in zip(SEEDS, found, by_torchvision(), strict=True):
            check_equal(ours, theirs, f"{kind}, seed {seed}")
        detections = sum(len(image.labels) for image in found) / len(found)
        theirs, ours = (1000 * seconds / len(images) for seconds in turn_by_turn([by_torchvision, by_us], ROUNDS))
        what = f"{kind}, score from {SCORE_THRESHOLD}: {pairs:,.0f} pairs, {detections:.0f} detections"
        rows.append(Row(what, "torchvision", theirs, ours, "ms", asked))
    text = f"""# Post-processing

One image of 8,732 boxes and {NUM_CLASSES} classes, the mean of {len(SEEDS)}; process time. The detections are \
torchvision's: the same number, order and classes, scores to 1e-6, boxes to 1/100 of a pixel.

{{rows}}
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure)
