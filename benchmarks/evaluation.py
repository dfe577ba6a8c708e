"""COCO evaluation as after each epoch of training, beside pycocotools and faster-coco-eval.

    python -m benchmarks.evaluation

A drawn set of the size of COCO val2017: 5,000 images, 80 classes, some 37,000 objects, 100 detections in each image.
From two JSON files to the twelve numbers, each contender in a process of its own, which gives its memory, too. In
training the objects are read once, and the detections are in memory: that is the second row.

Asked: 50 times pycocotools' speed, a quarter of its memory, the same twelve numbers to 1e-9. Takes 3 minutes.
"""

import argparse
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

from benchmarks.comparison import Row, write_page
from detection.coco.evaluation import GroundTruth, quick_scores
from engine.command import RunError, run_command

IMAGES, CLASSES, DETECTIONS, WIDTH, HEIGHT = 5000, 80, 100, 640, 480
ROUNDS = 3  # of the quick ones; pycocotools has one
TOLERANCE = 1e-9

Evaluate = Callable[[str, str], list[float]]  # annotations, results -> the twelve numbers


class Outcome(NamedTuple):
    """What a contender took, and what it found."""

    seconds: float  # of process time
    mib: float  # peak, beyond what its imports took
    stats: list[float]


# ---- the contenders ------------------------------------------------------------------------------------------------


def by_pycocotools(annotations: str, results: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ground_truth = COCO(annotations)
    return summarize(COCOeval(ground_truth, ground_truth.loadRes(results), "bbox"))


def by_faster_coco_eval(annotations: str, results: str) -> list[float]:
    from faster_coco_eval import COCO, COCOeval_faster

    ground_truth = COCO(annotations)
    return summarize(COCOeval_faster(ground_truth, ground_truth.loadRes(results), "bbox"))


def summarize(evaluation) -> list[float]:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats[:12])


def by_ours(annotations: str | GroundTruth, results: str | np.ndarray) -> list[float]:
    return [-1 if score is None else score for score in quick_scores(annotations, results).values()]


def run_alone(evaluate: Evaluate, annotations: str, results: str) -> Outcome:
    """For a process that does nothing else."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate(*draw(Path(annotations).parent, images=5, name="warm"))  # its imports
        return measure(evaluate, annotations, results)


def run_in_training(annotations: str, results: str) -> Outcome:
    """The second epoch and later ones."""
    content = json.loads(Path(results).read_text())
    table = np.array([(r["image_id"], *r["bbox"], r["score"], r["category_id"]) for r in content])
    truth = GroundTruth(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        quick_scores(truth, table)
        return measure(by_ours, truth, table)


def measure(evaluate: Evaluate, *inputs: object) -> Outcome:
    """Time and memory of this process, which has nothing else to do (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = memory_mib("VmRSS"), time.process_time()
    stats = evaluate(*inputs)
    return Outcome(time.process_time() - started, memory_mib("VmHWM") - before, stats)


def memory_mib(name: str) -> float:
    """VmRSS: what this process has now; VmHWM: the most it had."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


# ---- the set -------------------------------------------------------------------------------------------------------


def draw(folder: Path, images: int, name: str) -> tuple[str, str]:
    """Write annotations and results: half the detections lie near an object, most of them with its class."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, CLASSES + 1)
    objects, found = [], []
    for image_id in range(1, images + 1):
        count = rng.poisson(7.3)
        boxes, classes = draw_boxes(rng, count), rng.choice(CLASSES, count, p=shares / shares.sum()) + 1
        for box, category_id in zip(boxes.tolist(), classes.tolist(), strict=True):
            area, crowd = 0.6 * box[2] * box[3], int(rng.random() < 0.01)
            objects.append(
                record(image_id, category_id, box) | {"id": len(objects) + 1, "area": area, "iscrowd": crowd}
            )
        guesses, guessed = draw_boxes(rng, DETECTIONS), rng.integers(1, CLASSES + 1, DETECTIONS)
        scores = rng.beta(1, 6, DETECTIONS)
        if count:
            chosen = rng.integers(0, count, DETECTIONS // 2)
            near = boxes[chosen] + rng.normal(0, 0.1, (len(chosen), 4)) * np.tile(boxes[chosen, 2:], 2)
            guesses[: len(chosen)] = near.clip(1)
            guessed[: len(chosen)] = np.where(rng.random(len(chosen)) < 0.8, classes[chosen], guessed[: len(chosen)])
            scores[: len(chosen)] = rng.beta(2, 3, len(chosen))
        for box, category_id, score in zip(guesses.tolist(), guessed.tolist(), scores.tolist(), strict=True):
            found.append(record(image_id, category_id, box) | {"score": round(score, 6)})
    paths = folder / f"{name}.json", folder / f"{name}_results.json"
    sizes = [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)]
    names = [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)]
    paths[0].write_text(json.dumps({"images": sizes, "categories": names, "annotations": objects}))
    paths[1].write_text(json.dumps(found))
    return str(paths[0]), str(paths[1])


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) x, y, width, height in pixels."""
    sides = np.exp(rng.normal(4, 0.9, (count, 2))).clip(4, 400)
    return np.hstack([rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides), sides])


def record(image_id: int, category_id: int, box: list[float]) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": [round(value, 3) for value in box]}


# ---- the comparison ------------------------------------------------------------------------------------------------


def main(device: torch.device) -> None:
    """Compare, and write the page. Raises RunError if the numbers differ from pycocotools'."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()  # --help measures nothing
    with TemporaryDirectory() as name:
        paths = draw(Path(name), IMAGES, "set")

        def alone(run: Callable, *arguments: object) -> Outcome:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                return pool.submit(run, *arguments, *paths).result()

        pycocotools = alone(run_alone, by_pycocotools)
        turns = [
            (alone(run_alone, by_faster_coco_eval), alone(run_alone, by_ours), alone(run_in_training))
            for _ in range(ROUNDS)
        ]
    faster, ours, training = (min(outcomes) for outcomes in zip(*turns, strict=True))
    for found in (ours, training):
        worst = np.abs(np.subtract(found.stats, pycocotools.stats)).max()
        if worst > TOLERANCE:
            raise RunError(f"the twelve numbers differ from pycocotools' by up to {worst}")
    rows = [
        Row("JSON to the 12 numbers", "pycocotools", pycocotools.seconds, ours.seconds, "s", 50),
        Row("the same in training, objects known", "pycocotools", pycocotools.seconds, training.seconds, "s"),
        Row("peak memory of the first", "pycocotools", pycocotools.mib, ours.mib, "MiB", 4),
        Row("JSON to the 12 numbers", "faster-coco-eval", faster.seconds, ours.seconds, "s"),
    ]
    write_page(
        __file__,
        f"""# COCO evaluation

{IMAGES:,} drawn images, {DETECTIONS} detections in each; process time, memory beyond the imports. The twelve numbers \
are pycocotools' to {TOLERANCE:g}.

{{rows}}
""",
        rows,
        device,
    )


if __name__ == "__main__":
    run_command(main)
