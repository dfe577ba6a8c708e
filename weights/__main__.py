"""Weights to start from: what they are called, where they lie, how they come here and what they hold.

    python -m weights list                           the public ones that saved_weights/registry.yaml knows
    python -m weights fetch torchvision_swin_t       download one of them into saved_weights/
    python -m weights inspect FILE                   what a file holds, public or of one's own

A config names weights as `imagenet1k` or `imagenet22k` (the registry's default for its trunk), as an entry of the
registry, as a file, or as an experiment (its newest checkpoint). Nothing is downloaded but by `fetch`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.start import start

if TYPE_CHECKING:
    import torch


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m weights",
        description="Public weights to start from, and what a file of weights holds.",
        epilog="example: python -m weights fetch torchvision_swin_t",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    list_ = commands.add_parser("list", help="the public weights that are known, and which are here")
    fetch_ = commands.add_parser("fetch", help="download one of them; goes on where it was interrupted")
    fetch_.add_argument("name", metavar="NAME", help="as `list` shows it")
    for command in (list_, fetch_):
        command.add_argument(
            "--to", dest="folder", type=Path, default=Path("saved_weights"), metavar="FOLDER",
            help="where they are kept (default: saved_weights, where `model.weights` looks)",
        )  # fmt: skip
    inspect = commands.add_parser("inspect", help="what a file holds")
    inspect.add_argument(
        "file", type=Path, metavar="FILE", help="of weights, a name that `list` shows, or an experiment"
    )
    return parser.parse_args(words)


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """List, fetch or inspect, as the command line says."""
    from weights.registry import run

    run(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
