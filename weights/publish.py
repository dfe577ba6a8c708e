"""Publish an experiment: its weights in a folder that says what they are, as the Hugging Face hub wants it.

    python -m weights.publish experiments/experiment_3
    python -m weights.publish experiments/experiment_3 --output blood_cells --license cc-by-4.0

README.md          the model card (huggingface.co/docs/hub/model-cards): what it was trained on and how, its scores with
                   95% intervals, what it cannot do, its licence
model.safetensors  the weights that were scored; config, classes, scores and commit in its metadata
                   (weights/release.py)
config.yaml        the config, in which paths of this machine are cut to their last part
SHA256SUMS         of the three; `sha256sum --check SHA256SUMS` verifies them

Published again, the folder is filled anew, unless card or config were edited by hand: then nothing is written.

All of it comes from what every task leaves in its experiment, so this module knows of no task but what to call it.
Nothing is uploaded: `hf upload USER/NAME FOLDER` does that.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import check_experiment
from engine.start import start

if TYPE_CHECKING:
    import torch

UNKNOWN = "unknown"  # the hub's word for it
LICENSES = (
    "mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0", UNKNOWN,
)  # fmt: skip


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.publish",
        description="Write a finished experiment's weights, config and model card to a folder, ready for a hub.",
        epilog="example: python -m weights.publish experiments/experiment_3 --license cc-by-4.0",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="directory of the experiment")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder to write (default: saved_weights/ and its name)"
    )
    parser.add_argument(
        "--license", choices=LICENSES, default=UNKNOWN, help=f"under which you publish them (default: {UNKNOWN})"
    )
    arguments = parser.parse_args(words)
    check_experiment(arguments.experiment)
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Publish as the command line says."""
    from weights.model_card import publish

    publish(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
