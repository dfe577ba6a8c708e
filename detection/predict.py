"""Detect objects in your own images and videos.

    python -m detection.predict experiments/experiment_3 photo.jpg
    python -m detection.predict experiments/experiment_3 photos/ 'more/**/*.png' --json --score 0.05
    python -m detection.predict saved_weights/blood_cells.safetensors clip.mp4

The detections are drawn on copies in the output folder: a *.jpg for each image and an *.mp4 for each video, with the
name of the original. Videos need `pip install -e '.[video]'`. A folder means all images and videos in the folder and
its subfolders. --json also writes

detections.json  detections in COCO's results format: pixels of the upright originals, category ids of the data set
images.json      images and categories as in an annotation file; `file_name` is the original, `picture` the drawn copy;
                 each frame of a video is a separate image

Unreadable files are reported, one line each, and skipped; the exit code is then 2. Files of an earlier run are
replaced. If a file of the same name was made by a different program, nothing is written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import DETECTORS, check_experiment
from engine.start import start

if TYPE_CHECKING:
    import torch


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.predict",
        description="Detect objects in images and videos. Write copies with the detections drawn on them.\n"
        "Unreadable files are reported and skipped; the exit code is then 2.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps the example on one line
        epilog="example: python -m detection.predict experiments/experiment_3 photo.jpg photos/ --json",
    )
    parser.add_argument("detector", metavar="EXPERIMENT|WEIGHTS", help=DETECTORS)
    parser.add_argument(
        "sources", nargs="+", metavar="IMAGE|FOLDER|GLOB|VIDEO", help="one or more images, folders, patterns or videos"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="DIR", help="output folder (default: predictions)"
    )
    parser.add_argument("--json", action="store_true", help="also write detections.json (COCO results) and images.json")
    parser.add_argument("--score", type=parse_score, default=0.3, help="minimum score of detections (default: 0.3)")
    arguments = parser.parse_intermixed_args(words)
    check_experiment(Path(arguments.detector), f"{DETECTORS}; list images after it")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output}: is a file; expected a folder")
    return arguments


def parse_score(text: str) -> float:
    """Parse a score threshold for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 (inclusive) to 1 (exclusive)")
    return value


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Detect objects in the files that the command line names."""
    from detection.prediction import predict

    predict(arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
