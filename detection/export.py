"""Export a trained detector for other programs, as ONNX or in the format of torch.export.

    python -m detection.export experiments/experiment_3 --format onnx --postprocess
    python -m detection.export saved_weights/cells.safetensors photo.jpg --output cells.pt2

The exported program takes `images` (B, 3, S, S) float32, with any batch size B: RGB pixel values from 0 to 255, which
the program normalises itself. It returns the decoded, clipped boxes all_boxes_xyxy (B, A, 4) float32 and the class
probabilities all_scores (B, A, C) float32 of all A default boxes. With --postprocess (ONNX only) it returns the
detections, best first and padded to N = max_detections: boxes_xyxy (B, N, 4), scores (B, N), labels (B, N) int64 and
num_detections (B,) int64. Boxes are fractions of the image's sides.

The file describes its preprocessing and outputs as JSON (`export_facts` in detection/deployment/formats.py): ONNX in
metadata_props, torch.export in the extra file detector.json. docs/detection.md has examples.

Before the file is written, the program is run on one image and on a batch of images, and compared with the PyTorch
model. If the outputs differ, nothing is written and the exit code is 1.
"""

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import DETECTORS, check_experiment
from engine.start import start

if TYPE_CHECKING:
    import torch

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}  # suffixes of the files
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.export",
        description="Export a detector for other programs, and compare the export with the PyTorch model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps the example on one line
        epilog="example: python -m detection.export experiments/experiment_3 --format onnx --postprocess",
    )
    parser.add_argument("detector", metavar="EXPERIMENT|WEIGHTS", help=DETECTORS)
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE",
        help="images for the comparison (default: some of the experiment's validation images)",
    )  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, help="file format (default: from the suffix of --output, or onnx)")
    parser.add_argument(
        "--postprocess", action="store_true",
        help="include score threshold and NMS, so that detections are returned instead of all boxes (ONNX only)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: named after the detector)")
    arguments = parser.parse_intermixed_args(words)
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    arguments.format = arguments.format or by_suffix.get(arguments.output and arguments.output.suffix, "onnx")
    suffix = FORMATS[arguments.format]
    if arguments.format != "onnx" and arguments.postprocess:
        parser.error(f"--postprocess: not available with --format {arguments.format}; use --format onnx or omit it")
    if arguments.format == "onnx" and (missing := [name for name in ONNX_PACKAGES if not find_spec(name)]):
        parser.error(f"--format onnx: {', '.join(missing)} not installed: pip install -e '.[export]'")
    if arguments.output is None:
        source = Path(arguments.detector).resolve()
        experiment = f"{source.parent.parent.name}_" if source.parent.name == "checkpoints" else ""
        variant = "_postprocess" if arguments.postprocess else ""
        arguments.output = Path(f"{experiment}{source.name if source.is_dir() else source.stem}{variant}{suffix}")
    output = arguments.output
    if output.suffix != suffix or not os.access(output.parent, os.W_OK):
        expected = f"a *{suffix} file (--format {arguments.format}) in an existing, writable directory"
        parser.error(f"--output {output}: expected {expected}")
    check_experiment(Path(arguments.detector), f"{DETECTORS}; list images after it")
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Export the detector on the CPU."""
    from detection.deployment.formats import run_export

    run_export(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
