"""Write a trained detector into a file that other programs run: ONNX, torch.export's or TorchScript.

    python -m detection.export experiments/experiment_3 --format onnx --postprocess
    python -m detection.export saved_weights/cells.safetensors photo.jpg --format torchscript --output cells.torchscript

What is in the file takes `images` (B, 3, S, S) float32, prepared as its `preprocessing` says. The batch B is free, the
side S is the config's: the default boxes belong to it. It computes in float32 and gives

all_boxes_xyxy (B, A, 4), all_scores (B, A, C)   every default box decoded and clipped, its probability of each class

or, with --postprocess, which ONNX can, what detection/network/postprocess.py reports by the experiment's own
thresholds, best first, N = max_detections places for each image:

boxes_xyxy (B, N, 4), scores (B, N), labels (B, N) int64, num_detections (B,) int64   0 in the places that are left

Boxes are fractions of the image's sides. Label k, which is column k - 1 of all_scores, is the k-th of `classes` and of
`category_ids`. Such facts are in the file, as JSON each: `classes`, `category_ids`, `input_size`, `preprocessing`,
`outputs`, `postprocessing`, `step`; in ONNX in metadata_props, in the others together in an extra file, detector.json.

Before it is written, what is to be in it is run on real images, alone and in a batch, beside the PyTorch model. Beyond
TOLERANCE nothing is written, and the exit code is 1.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine.arguments import DETECTORS, check_experiment
from engine.start import start

if TYPE_CHECKING:
    import torch


class FileKind(NamedTuple):
    """What the command line has to know of a format."""

    suffix: str
    needs: tuple[str, ...] = ()  # packages


FORMATS = {
    "onnx": FileKind(".onnx", needs=("onnx", "onnxscript", "onnxruntime")),
    "torch-export": FileKind(".pt2"),
    "torchscript": FileKind(".torchscript"),
}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.export",
        description="Write a detector into a file for other programs, and verify it beside the PyTorch model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
        epilog="example: python -m detection.export experiments/experiment_3 --format onnx --postprocess",
    )
    parser.add_argument(
        "detector", metavar="EXPERIMENT|WEIGHTS",
        help=DETECTORS,
    )  # fmt: skip
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE",
        help="files to verify on (default: some of the experiment's validation images)",
    )  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, help="what to write (default: what --output ends in, else onnx)")
    parser.add_argument(
        "--postprocess", action="store_true",
        help="detections instead of all boxes: decoding, threshold, NMS; in no format but onnx",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write it (default: here, named after what is exported)"
    )
    arguments = parser.parse_intermixed_args(words)
    by_suffix = {row.suffix: name for name, row in FORMATS.items()}
    arguments.format = arguments.format or by_suffix.get(arguments.output and arguments.output.suffix, "onnx")
    suffix = FORMATS[arguments.format].suffix
    if arguments.postprocess and arguments.format != "onnx":
        parser.error(f"--postprocess: only in --format onnx, not in {arguments.format}; leave it out")
    if missing := [name for name in FORMATS[arguments.format].needs if not find_spec(name)]:
        parser.error(f"--format {arguments.format}: {', '.join(missing)} not installed: pip install -e '.[export]'")
    if arguments.output is None:
        named = Path(arguments.detector).resolve()
        experiment = f"{named.parent.parent.name}_" if named.parent.name == "checkpoints" else ""
        variant = "_postprocess" if arguments.postprocess else ""
        arguments.output = Path(f"{experiment}{named.name if named.is_dir() else named.stem}{variant}{suffix}")
    elif arguments.output.suffix != suffix or not arguments.output.parent.is_dir() or arguments.output.is_dir():
        wanted = f"a file *{suffix} (--format {arguments.format}) in a directory that exists"
        parser.error(f"--output {arguments.output}: expected {wanted}")
    check_experiment(Path(arguments.detector), f"{DETECTORS}; images come after it")
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Export as the command line says, on the CPU."""
    from detection.formats import run_export

    run_export(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
