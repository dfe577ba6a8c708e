"""COCO evaluation, as it runs after a training epoch, compared with pycocotools.

    python -m benchmarks.evaluation

Computes the twelve COCO scores from synthetic annotation and result files, for as many images as COCO val2017 has. The
scores must equal pycocotools' scores to 1e-9. Each contender has its own process, to measure memory. Takes 2 minutes.
"""

import contextlib
import io
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.comparison import Page, Row, run_benchmark
from detection.coco.evaluation import quick_scores
from engine.command import RunError

IMAGES, CLASSES, DETECTIONS = 5000, 80, 100
IMAGE_SIZE = (640, 480)  # the most common size in COCO
ROUNDS = 3  # for ours; pycocotools runs once
TOLERANCE = 1e-9

Evaluate = Callable[[str, str], list[float]]  # takes the files of annotations and results, returns the twelve scores


class Outcome(NamedTuple):
    """Time, memory and scores of a contender."""

    seconds: float  # process time
    mib: float  # peak memory minus the memory used after imports
    stats: list[float]


def by_pycocotools(annotations: str, results: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(annotations)
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats)


def by_ours(annotations: str, results: str) -> list[float]:
    return [-1 if score is None else score for score in quick_scores(annotations, results).values()]


def run_alone(evaluate: Evaluate, annotations: str, results: str) -> Outcome:
    """Return the time, memory and scores of `evaluate`. Call this function in a new process, on Linux."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate(*write_set(Path(annotations).parent, images=5, name="warmup"))  # so that imports are not measured
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory
        before, started = memory_mib("VmRSS"), time.process_time()
        stats = evaluate(annotations, results)
    return Outcome(time.process_time() - started, memory_mib("VmHWM") - before, stats)


def memory_mib(name: str) -> float:
    """Return the current (VmRSS) or peak (VmHWM) memory of this process in MiB."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def write_set(folder: Path, images: int, name: str) -> tuple[str, str]:
    """Write random annotations and results. Half of the detections are near an object; most of these have its class."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, CLASSES + 1)
    counts = 1 + rng.poisson(6.3, images)
    total = counts.sum()
    boxes, classes = random_boxes(rng, total), rng.choice(CLASSES, total, p=shares / shares.sum()) + 1
    area, is_crowd = 0.6 * boxes[:, 2] * boxes[:, 3], (rng.random(total) < 0.01) + 0
    objects = records(np.repeat(np.arange(images), counts) + 1, classes, boxes, area=area, iscrowd=is_crowd)

    image = np.repeat(np.arange(images), DETECTIONS)
    detected_boxes, detected_classes = random_boxes(rng, len(image)), rng.integers(1, CLASSES + 1, len(image))
    scores = rng.beta(1, 6, len(image))
    half = image[::2]
    target = counts.cumsum()[half] - 1 - rng.integers(0, counts[half])
    noise = rng.normal(0, 0.1, (len(half), 4)) * np.tile(boxes[target, 2:], 2)
    detected_boxes[::2] = (boxes[target] + noise).clip(1)
    detected_classes[::2] = np.where(rng.random(len(half)) < 0.8, classes[target], detected_classes[::2])
    scores[::2] = rng.beta(2, 3, len(half))

    paths = folder / f"{name}.json", folder / f"{name}_results.json"
    write_coco(paths[0], objects, [f"{image_id}.jpg" for image_id in range(1, images + 1)])
    paths[1].write_text(json.dumps(records(image + 1, detected_classes, detected_boxes, score=scores.round(6))))
    return str(paths[0]), str(paths[1])


def write_coco(path: Path, objects: list[dict], file_names: list[str]) -> None:
    """Write an annotation file of these images and objects. Image ids and object ids are 1, 2, ..."""
    width, height = IMAGE_SIZE
    content = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, name in enumerate(file_names, start=1)
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)],
        "annotations": [record | {"id": number} for number, record in enumerate(objects, start=1)],
    }
    path.write_text(json.dumps(content))


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return random boxes, (count, 4): x, y, width, height in pixels."""
    sides = np.exp(rng.normal(4, 0.9, (count, 2))).clip(4, 400)
    return np.hstack([rng.uniform(0, 1, (count, 2)) * (IMAGE_SIZE - sides), sides])


def records(image_ids: np.ndarray, category_ids: np.ndarray, boxes: np.ndarray, **fields: np.ndarray) -> list[dict]:
    """Return a record in COCO format for each box. fields: values of additional fields, one value per box."""
    columns = {"image_id": image_ids, "category_id": category_ids, "bbox": boxes.round(3)} | fields
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def measure(device: torch.device) -> Page:
    """Run both evaluations. Raises RunError if the scores differ from those of pycocotools."""

    def alone(evaluate: Evaluate) -> Outcome:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(run_alone, evaluate, *paths).result()

    with TemporaryDirectory() as name:
        paths = write_set(Path(name), IMAGES, "set")
        theirs, ours = alone(by_pycocotools), min(alone(by_ours) for _ in range(ROUNDS))
    max_difference = np.abs(np.subtract(ours.stats, theirs.stats)).max()
    if max_difference > TOLERANCE:
        raise RunError(f"the twelve scores differ from those of pycocotools by up to {max_difference}")
    rows = [
        Row("from JSON to the 12 scores", "pycocotools", theirs.seconds, ours.seconds, "s", 50),
        Row("peak memory", "pycocotools", theirs.mib, ours.mib, "MiB", 4),
    ]
    text = f"""# COCO evaluation

{IMAGES:,} synthetic images with {DETECTIONS} detections each; process time, and memory without that of the imports. \
The twelve scores equal those of pycocotools to {TOLERANCE:g}.

{{rows}}
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure)
