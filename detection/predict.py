"""Find objects in your own images and videos.

    python -m detection.predict experiments/experiment_3 photo.jpg
    python -m detection.predict experiments/experiment_3 photos/ 'more/**/*.png' --json --score 0.05
    python -m detection.predict saved_weights/blood_cells.safetensors clip.mp4

The output folder gets, under the names of the originals, *.jpg with the detections drawn in, and *.mp4 of videos (they
need `pip install -e '.[video]'`). Of a folder and its subfolders, all files with the suffix of an image or video are
taken. With --json there are also

detections.json  what was found, in COCO's results format: pixels of the upright originals, the classes' own ids
images.json      images and categories as in an annotation file; `file_name` is the original, `picture` the drawn one;
                 each frame of a video is an image

Unreadable files are reported, one line each, and skipped; the exit code is then 2. Files of an earlier run are
replaced; if a file of that name was made by another program, nothing is done.
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
        description="Find objects in images and videos: pictures of them, and COCO results.\n"
        "Unreadable files are reported and skipped; the exit code is then 2.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
        epilog="example: python -m detection.predict experiments/experiment_3 photo.jpg photos/ --json",
    )
    parser.add_argument("detector", metavar="EXPERIMENT|WEIGHTS", help=DETECTORS)
    parser.add_argument(
        "sources", nargs="+", metavar="IMAGE|FOLDER|GLOB|VIDEO", help="of any format and size; one or several"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="DIR", help="folder to write to (predictions)"
    )
    parser.add_argument("--json", action="store_true", help="also write detections.json and images.json")
    parser.add_argument("--score", type=score, default=0.3, help="smallest score to draw and write (0.3)")
    arguments = parser.parse_intermixed_args(words)
    check_experiment(Path(arguments.detector), f"{DETECTORS}; images come after it")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output}: a file; expected a folder")
    return arguments


def score(text: str) -> float:
    """A threshold of scores, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to below 1")
    return value


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Find objects as the command line says."""
    from detection.prediction import predict

    predict(arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
