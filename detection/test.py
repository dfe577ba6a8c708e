"""Score a finished experiment on its validation images, or sweep the post-processing thresholds.

    python -m detection.test experiments/experiment_3
    python -m detection.test experiments/experiment_3 eval.score_threshold=0.01,0.05 eval.nms_iou=0.45,0.5
    torchrun --standalone --nproc_per_node=4 -m detection.test experiments/experiment_3 --checkpoint best

Several values for a threshold, separated by commas, mean every combination; the network runs once for all of
them. The scores go to test.json in the experiment directory.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch

from detection.annotations import CocoFile, DatasetError, read_split
from detection.evaluation import METRICS, coco_scores
from detection.postprocess import PostprocessConfig
from detection.task import DetectionConfig, DetectionTask, read_experiment_config
from engine.checkpoint import load_checkpoint, newest_checkpoint
from engine.command import run_command
from engine.experiment import shown_score, write_text
from engine.logbook import logger
from training import trained_weights


def main(device: torch.device) -> None:
    """Score as the command line says, print the table, keep test.json."""
    arguments = parse_arguments()
    base, settings = read_settings(arguments.experiment, arguments.overrides)
    folder = arguments.experiment / "checkpoints"
    path = folder / "best.pt" if arguments.checkpoint == "best" else newest_checkpoint(folder)
    state = load_checkpoint(path)
    val = read_split(base.data, "val")
    check_classes(arguments.experiment, val)
    task = DetectionTask(base, val, from_checkpoint=True)
    task.load_weights(trained_weights(state), path)
    layout = torch.channels_last if base.train.channels_last else torch.preserve_format
    model = task.model.to(device, memory_format=layout)
    logger.info("scoring %s, step %d, on %d images", path, state["step"], len(task.val.images))
    results = task.detect_all(model, device, settings)
    if results is None:
        return
    rows = []
    for setting, found in zip(settings, results, strict=True):
        scores = coco_scores(task.val.annotations_path, found)
        rows.append(setting.model_dump() | {name: scores[name] for name in METRICS})
    record = {
        "checkpoint": path.name,
        "step": state["step"],
        "annotations": task.val.annotations_path.name,
        "settings": rows,
        "per_class": scores["per_class"] if len(rows) == 1 else None,
    }
    write_text(arguments.experiment / "test.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(table(rows))
    if record["per_class"]:
        print(table([{"class": name, **values} for name, values in record["per_class"].items()]))
    print(f"written to {arguments.experiment / 'test.json'}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.test",
        description="Score an experiment with COCO mAP; several values for a threshold make a sweep.",
        epilog="example: python -m detection.test experiments/experiment_3 eval.nms_iou=0.45,0.5,0.6",
    )
    parser.add_argument("experiment", type=Path, help="directory of the experiment")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value[,value...]",
        help="eval.score_threshold, eval.nms_iou, eval.max_detections: one value or several; data.root and others: one",
    )  # fmt: skip
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="which weights (default: last)")
    return parser.parse_args()


def read_settings(experiment: Path, overrides: list[str]) -> tuple[DetectionConfig, list[PostprocessConfig]]:
    """The experiment's config, and every combination of the post-processing values asked for.

    Raises ConfigError for a bad or repeated override, or a folder that is no experiment."""
    choices = []
    for override in overrides:
        name, _, values = override.partition("=")
        split = values.split(",") if name.startswith("eval.") else [values]
        choices.append([f"{name}={value}" for value in split])
    configs = [read_experiment_config(experiment, row) for row in itertools.product(*choices)]
    return configs[0], [config.eval for config in configs]


def check_classes(experiment: Path, val: CocoFile) -> None:
    """Raises DatasetError if the experiment's record lists other classes than the images to score."""
    path = experiment / "results.json"
    trained = json.loads(path.read_text(encoding="utf-8"))["protocol"]["classes"] if path.exists() else val.class_names
    if trained != val.class_names:
        raise DatasetError(
            f"{val.annotations_path}: classes {val.class_names}, but {experiment} was trained on {trained}"
        )


def table(rows: list[dict]) -> str:
    """Rows of equal keys as aligned columns; numbers between 0 and 1 with four decimals, None as 'undefined'."""

    def cell(value: object) -> str:
        return shown_score(value) if value is None or isinstance(value, float) else str(value)

    cells = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


if __name__ == "__main__":
    run_command(main)
