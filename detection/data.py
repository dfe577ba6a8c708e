"""Commands for whole data sets, before anything is trained on them.

python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd     what is wrong with it (check.py)
python -m detection.data shrink /datasets/coco --short-side 400               a copy that loads faster (shrink.py)
"""

import sys

import torch

from detection import check, shrink
from engine.command import run_command

COMMANDS = {"check": check.main, "shrink": shrink.main}


def main(_: torch.device) -> None:
    """Hand over to the command that the command line names. Raises ValueError if there is none such."""
    name, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if name in ("-h", "--help"):
        print(__doc__.strip())
    elif name in COMMANDS:
        COMMANDS[name](arguments)
    else:
        raise ValueError(f"python -m detection.data {name or '...'}: expected {' or '.join(COMMANDS)}; see --help")


if __name__ == "__main__":
    run_command(main)
