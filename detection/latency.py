"""Measure how long trained detectors take for an image, as their users would measure it.

    python -m detection.latency experiments/experiment_3 experiments/experiment_4
    python -m detection.latency EXPERIMENT... --device cpu --precision fp32 --programs eager,onnxruntime
    python -m detection.latency FOLDER data.root=/datasets/coco      # a folder made by weights.publish

Each experiment is timed on its validation images, read from files: with batch size 1, and with the largest batch that
pays. Times: the network, the post-processing, and end to end from the file to boxes in pixels. Programs: PyTorch
(eager), torch.compile (compiled), and the exported network in onnxruntime. The experiments take turns in random order,
so that a busy machine slows all of them alike, and their times can be compared although the machine is busy.

The times are written to latency.json in each experiment (records/latency.py). docs/performance.md explains them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import check_experiment, positive
from engine.start import start

if TYPE_CHECKING:
    import torch

PROGRAMS = ("eager", "compiled", "onnxruntime")
PRECISIONS = ("fp32", "bf16", "fp16")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.latency",
        description="Measure how long trained detectors take for an image.",
        epilog="example: python -m detection.latency experiments/experiment_3 experiments/experiment_4",
    )
    parser.add_argument(
        "words", nargs="+", metavar="EXPERIMENT|data.field=value",
        help="experiment directories or published folders; the first one is the reference of the ratios. "
        "data.root=FOLDER replaces the data folder of all experiments",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the precision of evaluation")
    parser.add_argument(
        "--programs", type=program_names, metavar="NAME,...",
        help=f"some of {', '.join(PROGRAMS)} (default: all that this machine can run)",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=positive, default=200,
        help="smallest number of runs with batch size 1 (default: 200); up to ten times as many are made until the "
        "ratios are precise enough to see a difference of 5%%",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the order of images and programs (default: 0)")
    arguments = parser.parse_intermixed_args(words)
    arguments.overrides = [word for word in arguments.words if "=" in word and not Path(word).exists()]
    arguments.experiments = [Path(word) for word in arguments.words if word not in arguments.overrides]
    if other := [word for word in arguments.overrides if not word.startswith("data.")]:
        parser.error(f"{other[0]}: only fields of data can be set, such as data.root=FOLDER")
    if not arguments.experiments:
        parser.error("name at least one experiment directory")
    for path in arguments.experiments:
        check_experiment(path)
        if not path.is_dir():
            parser.error(f"{path}: is a file; expected an experiment directory or a published folder")
    if len({path.resolve() for path in arguments.experiments}) < len(arguments.experiments):
        parser.error("an experiment is named twice; its record can hold only one measurement")
    return arguments


def program_names(text: str) -> list[str]:
    """Parse names of programs that are separated by commas; an argparse type."""
    names = text.split(",")
    for name in names:
        if name not in PROGRAMS:
            raise argparse.ArgumentTypeError(f"{name!r}: expected some of {', '.join(PROGRAMS)}")
    return names


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Measure the experiments, print the times, and write latency.json into each."""
    from detection.deployment.session import run_latency

    run_latency(arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
