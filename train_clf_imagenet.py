"""Train a classifier. Shortcut for the commands of classification/; the first argument selects the command.

python train_clf_imagenet.py CONFIG ...              runs python -m classification.training CONFIG ...
python train_clf_imagenet.py evaluate|predict ...    runs python -m classification.evaluate|predict ...
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from classification import evaluate, predict, training
from engine.start import start

if TYPE_CHECKING:
    import torch

COMPUTES = training.COMPUTES  # used if the `task` in a grid file is this module
ACTIONS = {"evaluate": evaluate, "predict": predict}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Without an action (evaluate or predict), train."""
    command = ACTIONS.get(words[0]) if words else None
    arguments = command.parse_arguments(words[1:]) if command else training.parse_arguments(words)
    arguments.command = command or training
    return arguments


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Run the selected command: training, evaluate or predict."""
    arguments.command.main(arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
