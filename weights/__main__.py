"""List and download public weights, and describe a file of weights.

python -m weights list                           the public ones in saved_weights/registry.yaml
python -m weights fetch torchvision_swin_t       download one of them to saved_weights/
python -m weights inspect FILE                   what a file holds, public or your own
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
    fetch_ = commands.add_parser("fetch", help="download one of them")
    fetch_.add_argument("name", metavar="NAME", help="as `list` shows it")
    for command in (list_, fetch_):
        command.add_argument(
            "--to", dest="folder", type=Path, default=Path("saved_weights"), metavar="FOLDER",
            help="where they are kept (default: saved_weights, where `model.weights` looks)",
        )  # fmt: skip
    inspect = commands.add_parser("inspect", help="what a file holds")
    inspect.add_argument("file", metavar="FILE", help="of weights, a name that `list` shows, or an experiment")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """List, fetch or inspect."""
    from weights.registry import describe, fetch, fetched_file, listing, read_registry
    from weights.release import weights_in

    if arguments.command == "list":
        print(listing(arguments.folder))
        return
    if arguments.command == "fetch":
        path = fetch(arguments.name, arguments.folder)
    else:
        entries = {entry.name: entry for entry in read_registry().weights}
        entry = entries.get(arguments.file)
        path = fetched_file(entry) if entry else weights_in(Path(arguments.file))
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
    for label, value in describe(path).items():
        print(f"{label + ':':<10}{value}")


if __name__ == "__main__":
    start(parse_arguments, main)
