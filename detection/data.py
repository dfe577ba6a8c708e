"""Commands for whole data sets, before anything is trained on them.

python -m detection.data fetch coco2017 datasets/coco                         download COCO
python -m detection.data layout ~/fiftyone/coco-2017                          how it lies there, how to train on it
python -m detection.data convert voc VOCdevkit/VOC2007                        Pascal VOC or YOLO into COCO's format
python -m detection.data split my_export                                      one annotation file into two halves
python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd     what is wrong with it
python -m detection.data shrink /datasets/coco --short-side 400               a copy that loads faster

Each is a module of detection/prepare, and has a --help of its own. docs/data.md tells of all.
"""

import sys

import torch

from detection.prepare import check, convert, fetch, layouts, shrink, split
from engine.command import run_command

COMMANDS = {
    "fetch": fetch.main,
    "layout": layouts.main,
    "convert": convert.main,
    "split": split.main,
    "check": check.main,
    "shrink": shrink.main,
}


def main(_: torch.device) -> None:
    """Hand over to the command that the command line names. Raises ValueError if there is none such."""
    name, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if name in ("-h", "--help"):
        print(__doc__.strip())
    elif name in COMMANDS:
        COMMANDS[name](arguments)
    else:
        *others, last = COMMANDS
        raise ValueError(
            f"python -m detection.data {name or '...'}: expected {', '.join(others)} or {last}; see --help"
        )


if __name__ == "__main__":
    run_command(main)
