"""Score a finished experiment on its validation images, or sweep the post-processing thresholds.

    python -m detection.evaluate experiments/experiment_3
    python -m detection.evaluate experiments/experiment_3 eval.score_threshold=0.01,0.05 eval.nms_iou=0.45,0.5
    torchrun --standalone --nproc_per_node=4 -m detection.evaluate EXPERIMENT --checkpoint best

Several values for a threshold, separated by commas, mean every combination; the network runs once for all of
them. The scores go to test.json in the experiment directory. A folder made by weights.publish is scored in the same
way, with data.root=FOLDER because its config only names the data.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import check_experiment
from engine.start import start

if TYPE_CHECKING:
    import torch

    from detection.coco.annotations import CocoFile
    from detection.network.postprocess import PostprocessConfig
    from detection.task import DetectionConfig


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.evaluate",
        description="Score an experiment with COCO mAP; several values for a threshold make a sweep.",
        epilog="example: python -m detection.evaluate experiments/experiment_3 eval.nms_iou=0.45,0.5,0.6",
    )
    parser.add_argument("experiment", type=Path, help="directory of the experiment, or a published folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value[,value...]",
        help="eval.score_threshold, eval.nms_iou, eval.max_detections: one value or several; data.root and others: one",
    )  # fmt: skip
    parser.add_argument("--checkpoint", default="last", metavar="last|best|FILE", help="weights to score (last)")
    arguments = parser.parse_intermixed_args(words)
    if arguments.experiment.is_file():
        parser.error(f"{arguments.experiment}: a file; name the experiment's directory, weights by --checkpoint FILE")
    check_experiment(arguments.experiment)
    return arguments


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Score as the command line says, print the table, keep test.json."""
    import torch

    from data import DatasetError
    from detection.coco.annotations import read_split
    from detection.coco.evaluation import METRICS, as_dicts, coco_scores
    from detection.task import DetectionTask, load_detector, read_detector
    from engine import distributed
    from engine.compute.precision import inference_precision
    from engine.files import write_text
    from engine.logbook import logger
    from records.experiment import table
    from weights.release import weights_in

    base, settings = read_settings(arguments.experiment, arguments.overrides)
    if not any(override.startswith("train.precision=") for override in arguments.overrides):
        precision = distributed.broadcast(inference_precision(base.train.precision, device))
        base = base.model_copy(update={"train": base.train.model_copy(update={"precision": precision})})
    named = {"last": arguments.experiment, "best": arguments.experiment / "checkpoints/best.pt"}
    path = weights_in(named.get(arguments.checkpoint, Path(arguments.checkpoint)))
    detector = read_detector(path)
    val = read_split(base.data, "val")
    if detector.class_names not in (None, val.class_names):
        raise DatasetError(f"{val.annotations_path}: classes {val.class_names}, but {path} has {detector.class_names}")
    task = DetectionTask(base, None, val, from_checkpoint=True)
    load_detector(task.model, detector.weights, path)
    layout = torch.channels_last if base.train.channels_last else torch.preserve_format
    model = task.model.to(device, memory_format=layout)
    logger.info("scoring %s, step %d, on %d images", path, detector.step, len(task.val.images))
    if distributed.is_main():
        warn_of_other_data(arguments.experiment, val)
    results = task.detect_all(model, device, settings)
    if results is None:
        return
    rows = []
    for setting, found in zip(settings, results, strict=True):
        scores = coco_scores(task.truth, as_dicts(found))
        rows.append(setting.model_dump() | {name: scores[name] for name in METRICS})
    record = {
        "checkpoint": path.name,
        "step": detector.step,
        "annotations": val.annotations_path.name,
        "annotations_sha256": val.sha256,
        "images": len(val.images),
        "precision": base.train.precision,
        "settings": rows,
        "per_class": scores["per_class"] if len(rows) == 1 else None,
    }
    print(table(rows))
    if record["per_class"]:
        print(table([{"class": name, **values} for name, values in record["per_class"].items()]))
    write_text(arguments.experiment / "test.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {arguments.experiment / 'test.json'}")


def warn_of_other_data(experiment: Path, val: "CocoFile") -> None:
    """Log if the annotations are not those of the training, and if images to score were trained on."""
    from engine.inputs import read_inputs
    from engine.logbook import logger

    if (inputs := read_inputs(experiment)) is None:
        return
    if val.sha256 not in inputs.files.values():
        logger.warning("%s: not the annotations of the training; its scores are not comparable", val.annotations_path)
    train = inputs.images["train"]
    shared = sorted({image.file_name for image in val.images} & set(train.names))
    if shared and Path(train.folder).resolve() == val.images_dir.resolve():
        what = "at least %d of %d images to score were trained on, such as %s: the score is too high"
        logger.warning(what, len(shared), len(val.images), shared[0])


def read_settings(experiment: Path, overrides: list[str]) -> tuple["DetectionConfig", list["PostprocessConfig"]]:
    """Return the experiment's config, and every combination of the post-processing values asked for.

    Raises ConfigError for a bad or repeated override, or a folder that is not an experiment."""
    from detection.task import DetectionConfig
    from records.experiment import read_experiment_config

    choices = []
    for override in overrides:
        name, _, values = override.partition("=")
        split = values.split(",") if name.startswith("eval.") else [values]
        choices.append([f"{name}={value}" for value in split])
    configs = [read_experiment_config(experiment, DetectionConfig, row) for row in itertools.product(*choices)]
    return configs[0], [config.eval for config in configs]


if __name__ == "__main__":
    start(parse_arguments, main)
