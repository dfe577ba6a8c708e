"""List and download public weights, and describe weights files.

python -m weights list                           list the public weights in saved_weights/registry.yaml
python -m weights list 'timm/convnext_tiny*'     list weights of timm with their tags (pip install -e '.[timm]')
python -m weights fetch torchvision_swin_t ...   download public weights to saved_weights/
python -m weights fetch timm/convnext_tiny ...   the same for weights of timm: the default tag, or timm/MODEL.TAG
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
    list_.add_argument(
        "pattern", nargs="?", metavar="'timm/MODEL*'",
        help="list the weights of these timm models instead of the registry; the pattern may also match tags",
    )  # fmt: skip
    fetch_ = commands.add_parser("fetch", help="download public weights")
    fetch_.add_argument("names", nargs="+", metavar="NAME", help="names of the weights, as shown by `list`")
    for command in (list_, fetch_):
        command.add_argument(
            "--to", dest="folder", type=Path, default=Path("saved_weights"), metavar="FOLDER",
            help="folder of downloaded weights (default: saved_weights, where `model.weights` searches)",
        )  # fmt: skip
    inspect = commands.add_parser("inspect", help="describe a weights file")
    inspect.add_argument("file", metavar="FILE", help="a weights file, a name shown by `list`, or an experiment")
    arguments = parser.parse_args(words)
    if arguments.command == "list" and arguments.pattern and not arguments.pattern.startswith("timm/"):
        name = arguments.pattern
        raise ValueError(f"{name}: expected no pattern, or one that begins with timm/, such as timm/{name}")
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """List, fetch or inspect weights."""
    from weights.registry import describe, entry_named, fetch, listing, local_file, read_registry
    from weights.release import weights_in
    from weights.timm_weights import PREFIX

    if arguments.command == "list":
        print(listing(arguments.folder, arguments.pattern))
        if not arguments.pattern:
            print(
                "\nweights of timm: `python -m weights list 'timm/convnext_tiny*'` lists them, "
                "`python -m weights fetch timm/MODEL.TAG` downloads them (pip install -e '.[timm]')"
            )
        return
    if arguments.command == "fetch":
        entries = [entry_named(name) for name in arguments.names]  # an unknown name is an error before any download
        for entry in entries:
            print_facts({"name": entry.name, "source": entry.url} | describe(fetch(entry, arguments.folder)))
        return
    if arguments.file.startswith(PREFIX) or arguments.file in [each.name for each in read_registry().weights]:
        entry = entry_named(arguments.file)
        path = local_file(entry)
    else:
        path, entry = weights_in(Path(arguments.file)), None
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
    print_facts(({"name": entry.name, "source": entry.url} if entry else {}) | describe(path))


def print_facts(facts: dict[str, str]) -> None:
    """Print one line per fact, and an empty line."""
    for label, value in facts.items():
        print(f"{label + ':':<10}{value}")
    print(flush=True)


if __name__ == "__main__":
    start(parse_arguments, main)
