"""Charts and pictures of all tasks: shortened class names, and small PNG files marked as written by this project."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.files import write_atomically
from engine.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MADE_BY = "ssd-workbench"  # in the metadata of every picture
NAME_LENGTH = 22  # maximum number of characters of a class name beside a chart


def shorten(names: Iterable[str]) -> dict[str, str]:
    """Return {name: short name} for class names beside a chart; the middle of a long name becomes an ellipsis."""
    short = {name: printable(name) for name in names}
    half = NAME_LENGTH // 2
    return {name: f"{s[: half - 1]}…{s[-half:]}" if len(s) > NAME_LENGTH else s for name, s in short.items()}


def save_chart(path: Path, figure: "Figure") -> None:
    """Write a figure as a PNG with 256 colours. Charts are committed, and this makes them three times smaller."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_png(path, Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256))


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG that `is_ours` recognises; create its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = PngInfo()
    metadata.add_text("Software", MADE_BY)
    optimize = image.mode == "P"  # for true colour, optimizing takes seconds and saves little
    write_atomically(path, lambda file: image.save(file, "PNG", optimize=optimize, pnginfo=metadata))


def is_ours(path: Path) -> bool:
    """Return whether this project wrote the PNG or JPEG, and may therefore overwrite it."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MADE_BY or image.info.get("comment") == MADE_BY.encode()
    except OSError:
        return False
