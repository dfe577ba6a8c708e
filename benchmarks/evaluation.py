"""COCO evaluation as after each epoch of training, beside pycocotools.

    python -m benchmarks.evaluation

A drawn set of the size of COCO val2017, from two JSON files to the twelve numbers, which must be the same to 1e-9. Each
contender has a process of its own, for its memory. Takes 2 minutes.
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
PICTURE_SIZE = (640, 480)  # most of COCO's images
ROUNDS = 3  # of ours; pycocotools has one
TOLERANCE = 1e-9

Evaluate = Callable[[str, str], list[float]]  # annotations, results -> the twelve numbers


class Outcome(NamedTuple):
    """What a contender took, and what it found."""

    seconds: float  # of process time
    mib: float  # peak, beyond what its imports took
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
    """Time and memory of a process that does nothing else (Linux)."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate(*draw(Path(annotations).parent, images=5, name="warm"))  # its imports
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, started = memory_mib("VmRSS"), time.process_time()
        stats = evaluate(annotations, results)
    return Outcome(time.process_time() - started, memory_mib("VmHWM") - before, stats)


def memory_mib(name: str) -> float:
    """VmRSS: what this process has now; VmHWM: the most it had."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def draw(folder: Path, images: int, name: str) -> tuple[str, str]:
    """Write annotations and results: half the detections are near an object, most of them with its class."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, CLASSES + 1)
    counts = 1 + rng.poisson(6.3, images)
    total = counts.sum()
    boxes, classes = draw_boxes(rng, total), rng.choice(CLASSES, total, p=shares / shares.sum()) + 1
    area, is_crowd = 0.6 * boxes[:, 2] * boxes[:, 3], (rng.random(total) < 0.01) + 0
    objects = records(np.repeat(np.arange(images), counts) + 1, classes, boxes, area=area, iscrowd=is_crowd)

    of_image = np.repeat(np.arange(images), DETECTIONS)
    guesses, guessed = draw_boxes(rng, len(of_image)), rng.integers(1, CLASSES + 1, len(of_image))
    scores = rng.beta(1, 6, len(of_image))
    half = of_image[::2]
    chosen = counts.cumsum()[half] - 1 - rng.integers(0, counts[half])
    noise = rng.normal(0, 0.1, (len(half), 4)) * np.tile(boxes[chosen, 2:], 2)
    guesses[::2] = (boxes[chosen] + noise).clip(1)
    guessed[::2] = np.where(rng.random(len(half)) < 0.8, classes[chosen], guessed[::2])
    scores[::2] = rng.beta(2, 3, len(half))

    paths = folder / f"{name}.json", folder / f"{name}_results.json"
    write_coco(paths[0], objects, [f"{image_id}.jpg" for image_id in range(1, images + 1)])
    paths[1].write_text(json.dumps(records(of_image + 1, guessed, guesses, score=scores.round(6))))
    return str(paths[0]), str(paths[1])


def write_coco(path: Path, objects: list[dict], file_names: list[str]) -> None:
    """Write objects, numbered here, of images with the ids 1, 2, ..., as an annotation file."""
    width, height = PICTURE_SIZE
    content = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, name in enumerate(file_names, start=1)
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)],
        "annotations": [record | {"id": number} for number, record in enumerate(objects, start=1)],
    }
    path.write_text(json.dumps(content))


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) x, y, width, height in pixels."""
    sides = np.exp(rng.normal(4, 0.9, (count, 2))).clip(4, 400)
    return np.hstack([rng.uniform(0, 1, (count, 2)) * (PICTURE_SIZE - sides), sides])


def records(image_ids: np.ndarray, category_ids: np.ndarray, boxes: np.ndarray, **further: np.ndarray) -> list[dict]:
    """Return a record for each box, as the COCO format has them."""
    columns = {"image_id": image_ids, "category_id": category_ids, "bbox": boxes.round(3)} | further
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def measure(device: torch.device) -> Page:
    """Compare. Raises RunError if the numbers differ from pycocotools'."""

    def alone(evaluate: Evaluate) -> Outcome:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(run_alone, evaluate, *paths).result()

    with TemporaryDirectory() as name:
        paths = draw(Path(name), IMAGES, "set")
        theirs, ours = alone(by_pycocotools), min(alone(by_ours) for _ in range(ROUNDS))
    worst = np.abs(np.subtract(ours.stats, theirs.stats)).max()
    if worst > TOLERANCE:
        raise RunError(f"the twelve numbers differ from pycocotools' by up to {worst}")
    rows = [
        Row("JSON to the 12 numbers", "pycocotools", theirs.seconds, ours.seconds, "s", 50),
        Row("peak memory of the same", "pycocotools", theirs.mib, ours.mib, "MiB", 4),
    ]
    text = f"""# COCO evaluation

{IMAGES:,} drawn images, {DETECTIONS} detections in each; process time, memory beyond the imports. The twelve numbers \
are pycocotools' to {TOLERANCE:g}.

{{rows}}
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure)
