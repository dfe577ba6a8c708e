"""List and download public weights, and describe weights files.

python -m weights list                           list the public weights in saved_weights/registry.yaml
python -m weights fetch torchvision_swin_t       download public weights to saved_weights/
python -m weights inspect FILE                   describe a weights file, public or your own
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
        description="List and download public weights, and describe weights files.",
        epilog="example: python -m weights fetch torchvision_swin_t",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    list_ = commands.add_parser("list", help="list public weights, and whether they are downloaded")
    fetch_ = commands.add_parser("fetch", help="download public weights")
    fetch_.add_argument("name", metavar="NAME", help="name of the weights, as shown by `list`")
    for command in (list_, fetch_):
        command.add_argument(
            "--to", dest="folder", type=Path, default=Path("saved_weights"), metavar="FOLDER",
            help="folder of downloaded weights (default: saved_weights, where `model.weights` searches)",
        )  # fmt: skip
    inspect = commands.add_parser("inspect", help="describe a weights file")
    inspect.add_argument("file", metavar="FILE", help="a weights file, a name shown by `list`, or an experiment")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """List, fetch or inspect weights."""
    from weights.registry import describe, fetch, listing, local_file, read_registry
    from weights.release import weights_in

    if arguments.command == "list":
        print(listing(arguments.folder))
        return
    if arguments.command == "fetch":
        path = fetch(arguments.name, arguments.folder)
    else:
        entries = {entry.name: entry for entry in read_registry().weights}
        entry = entries.get(arguments.file)
        path = local_file(entry) if entry else weights_in(Path(arguments.file))
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
    for label, value in describe(path).items():
        print(f"{label + ':':<10}{value}")


if __name__ == "__main__":
    start(parse_arguments, main)
