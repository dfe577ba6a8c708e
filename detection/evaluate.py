"""Score a finished experiment on its validation images, or sweep the post-processing thresholds.

    python -m detection.evaluate experiments/experiment_3
    python -m detection.evaluate experiments/experiment_3 eval.score_threshold=0.01,0.05 eval.nms_iou=0.45,0.5
    torchrun --standalone --nproc_per_node=4 -m detection.evaluate EXPERIMENT --checkpoint best
    python -m detection.evaluate experiments/experiment_3 --corruptions --severities 1,3,5

If thresholds have several comma-separated values, every combination is scored. The network runs only once. Scores are
written to test.json in the experiment directory. A folder made by weights.publish is scored the same way, but needs
data.root=FOLDER, because its config does not contain the full path of the data.

Sigmoid scores (loss.classification focal or quality_focal) are distributed differently from softmax scores, so the same
eval.score_threshold keeps a different number of detections. Choose the threshold by a sweep, as above.

--corruptions scores the detector on images with noise, blur and the like (detection/corruptions), and writes
corruptions.json. It needs `pip install -e '.[corruptions]'`.
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
    from detection.network.ssd import SSD
    from detection.task import DetectionConfig, DetectionTask
    from records.robustness import Robustness


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.evaluate",
        description="Score a checkpoint of an experiment with COCO mAP.",
        epilog="example: python -m detection.evaluate experiments/experiment_3 eval.nms_iou=0.45,0.5,0.6",
    )
    parser.add_argument("experiment", type=Path, help="experiment directory, or a published folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value[,value...]",
        help="replaces a config value; fields of eval can have several values, and every combination is scored",
    )  # fmt: skip
    parser.add_argument("--checkpoint", default="last", metavar="last|best|FILE", help="weights (default: last)")
    parser.add_argument(
        "--corruptions", nargs="?", const="noise,blur,weather,digital", metavar="NAME[,NAME]",
        help="score under common corruptions, such as fog, or kinds: noise, blur, weather, digital (default: all 15)",
    )  # fmt: skip
    parser.add_argument(
        "--severities", type=severities, default=(1, 2, 3, 4, 5), metavar="1,2,3,4,5", help="of --corruptions"
    )
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep corrupted images, for other experiments")
    arguments = parser.parse_intermixed_args(words)
    if arguments.experiment.is_file():
        parser.error(f"{arguments.experiment}: is a file; expected a directory; to score a file, add --checkpoint FILE")
    check_experiment(arguments.experiment)
    return arguments


def severities(text: str) -> list[int]:
    """Parse --severities: comma-separated integers from 1 to 5."""
    words = text.split(",")
    if not all(word in "12345" and len(word) == 1 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers from 1 to 5, such as 1,3,5")
    return sorted({int(word) for word in words})


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Score the experiment, print the table and write test.json."""
    import torch

    from data import DatasetError
    from detection.coco.annotations import read_split
    from detection.coco.evaluation import METRICS, as_dicts, coco_scores
    from detection.record import protocol
    from detection.task import DetectionTask, load_detector, read_detector
    from engine import distributed
    from engine.compute.precision import inference_precision
    from engine.files import write_text
    from engine.logbook import logger
    from records.experiment import table
    from weights.release import weights_in

    if arguments.corruptions:
        from detection.corruptions.images import library_versions, parse_names

        names, versions = parse_names(arguments.corruptions), library_versions()
    base, settings = read_settings(arguments.experiment, arguments.overrides)
    if not any(override.startswith("train.precision=") for override in arguments.overrides):
        precision = distributed.broadcast(inference_precision(base.train.precision, device))
        base = base.model_copy(update={"train": base.train.model_copy(update={"precision": precision})})
    checkpoints = {"last": arguments.experiment, "best": arguments.experiment / "checkpoints/best.pt"}
    path = weights_in(checkpoints.get(arguments.checkpoint, Path(arguments.checkpoint)))
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
        warn_about_data(arguments.experiment, val)
    if arguments.corruptions:
        from records.robustness import Robustness

        if len(settings) > 1:
            raise ValueError(f"--corruptions: got {len(settings)} settings of eval, expected one value per field")
        new = Robustness(
            metric="mAP", corruptions=names, severities=arguments.severities, checkpoint=path.name, step=detector.step,
            precision=base.train.precision, protocol=protocol(val, base.eval), versions=versions,
        )  # fmt: skip
        score_under_corruptions(task, model, device, arguments, new)
        return
    results = task.detect_all(model, device, settings)
    if results is None:
        return
    rows = []
    for setting, predictions in zip(settings, results, strict=True):
        scores = coco_scores(task.truth, as_dicts(predictions))
        rows.append(setting.model_dump() | {name: scores[name] for name in METRICS})
    record = {
        "checkpoint": path.name,
        "step": detector.step,
        "annotations": val.annotations_path.name,
        "annotations_sha256": val.sha256,
        "images": len(val.images),
        "precision": base.train.precision,
        "score_function": task.model.score_function,
        "settings": rows,
        "per_class": scores["per_class"] if len(rows) == 1 else None,
    }
    print(f"{task.model.score_function} scores\n{table(rows)}")
    if record["per_class"]:
        print(table([{"class": name, **values} for name, values in record["per_class"].items()]))
    write_text(arguments.experiment / "test.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {arguments.experiment / 'test.json'}")


def score_under_corruptions(
    task: "DetectionTask", model: "SSD", device: "torch.device", arguments: argparse.Namespace, new: "Robustness"
) -> None:
    """Score a detector on corrupted images, print the table, and draw an image under all corruptions."""
    from detection.corruptions.scoring import score_corruptions, summary, table_rows
    from detection.drawing.corruptions import draw_corruptions
    from engine import distributed
    from records.experiment import table
    from records.robustness import CORRUPTIONS_FILE

    record = score_corruptions(task, model, device, arguments.experiment, new, arguments.cache)
    if distributed.is_main():
        print(f"{table(table_rows(record))}\n{summary(record)}")
        draw_corruptions(arguments.experiment / "corruptions.png", task.val, record)
        print(f"written to {arguments.experiment / CORRUPTIONS_FILE}")


def warn_about_data(experiment: Path, val: "CocoFile") -> None:
    """Warn if the run used different annotations, or if some of these validation images were training images."""
    from engine.inputs import read_inputs
    from engine.logbook import logger

    if (inputs := read_inputs(experiment)) is None:
        return
    if val.sha256 not in inputs.files.values():
        logger.warning("%s: the run used different annotations, so the scores are not comparable", val.annotations_path)
    train = inputs.images["train"]
    shared = sorted({image.file_name for image in val.images} & set(train.names))
    if shared and Path(train.folder).resolve() == val.images_dir.resolve():
        message = "at least %d of %d validation images were also training images, such as %s; the scores are too high"
        logger.warning(message, len(shared), len(val.images), shared[0])


def read_settings(experiment: Path, overrides: list[str]) -> tuple["DetectionConfig", list["PostprocessConfig"]]:
    """Return the experiment's config, and every combination of the requested post-processing values.

    Raises ConfigError for an invalid or duplicate override, or if the folder is not an experiment."""
    from detection.task import DetectionConfig
    from records.experiment import read_experiment_config

    choices = []
    for override in overrides:
        name, _, values = override.partition("=")
        alternatives = values.split(",") if name.startswith("eval.") else [values]
        choices.append([f"{name}={value}" for value in alternatives])
    configs = [read_experiment_config(experiment, DetectionConfig, row) for row in itertools.product(*choices)]
    return configs[0], [config.eval for config in configs]


if __name__ == "__main__":
    start(parse_arguments, main)
