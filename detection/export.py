"""Write a trained detector into a file that other programs run: ONNX, or PyTorch's own torch.export.

    python -m detection.export experiments/experiment_3 --format onnx --postprocess
    python -m detection.export saved_weights/cells.safetensors photo.jpg --output cells.pt2

The program in the file takes `images` (B, 3, S, S) float32, any number of them, and returns in float32
all_boxes_xyxy (B, A, 4), all_scores (B, A, C): every default box decoded and clipped, and its class probabilities;
with --postprocess (ONNX only) boxes_xyxy (B, N, 4), scores (B, N), labels (B, N) int64, num_detections (B,) int64: the
detections, best first, in N = max_detections places. Boxes are fractions of the image's sides.

How images are prepared and what the outputs mean is in the file as JSON, see `detection.formats.facts_of`; in ONNX in
metadata_props, in torch.export in the extra file detector.json. docs/detection.md has examples.

Before it is written, the program is run on real images, alone and in a batch, and compared with the PyTorch model. If
they differ, nothing is written and the exit code is 1.
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
        description="Write a detector into a file for other programs, and compare it with the PyTorch model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
        epilog="example: python -m detection.export experiments/experiment_3 --format onnx --postprocess",
    )
    parser.add_argument("detector", metavar="EXPERIMENT|WEIGHTS", help=DETECTORS)
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE",
        help="files to compare on (default: some of the experiment's validation images)",
    )  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, help="what to write (default: by the suffix of --output, or onnx)")
    parser.add_argument(
        "--postprocess", action="store_true",
        help="detections instead of all boxes: decoding, threshold and NMS inside (ONNX only)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: here, named after the detector")
    arguments = parser.parse_intermixed_args(words)
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    arguments.format = arguments.format or by_suffix.get(arguments.output and arguments.output.suffix, "onnx")
    suffix = FORMATS[arguments.format]
    if arguments.format != "onnx" and arguments.postprocess:
        parser.error(f"--postprocess: only in --format onnx, not in {arguments.format}; leave it out")
    if arguments.format == "onnx" and (missing := [name for name in ONNX_PACKAGES if not find_spec(name)]):
        parser.error(f"--format onnx: {', '.join(missing)} not installed: pip install -e '.[export]'")
    if arguments.output is None:
        named = Path(arguments.detector).resolve()
        experiment = f"{named.parent.parent.name}_" if named.parent.name == "checkpoints" else ""
        variant = "_postprocess" if arguments.postprocess else ""
        arguments.output = Path(f"{experiment}{named.name if named.is_dir() else named.stem}{variant}{suffix}")
    output = arguments.output
    if output.suffix != suffix or not os.access(output.parent, os.W_OK):
        wanted = f"a file *{suffix} (--format {arguments.format}) in a directory that exists and can be written"
        parser.error(f"--output {output}: expected {wanted}")
    check_experiment(Path(arguments.detector), f"{DETECTORS}; images come after it")
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Export as the command line says, on the CPU."""
    from detection.formats import run_export

    run_export(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
