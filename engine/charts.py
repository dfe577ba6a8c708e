"""What charts and pictures of all tasks share: names that fit beside them, and small files that say who wrote them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.files import write_whole
from engine.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MADE_BY = "ssd-workbench"  # in the metadata of every picture
NAME_LENGTH = 22  # of a class, in letters


def shorten(names: Iterable[str]) -> dict[str, str]:
    """Return class names as they fit beside a chart, by the whole name; long ones lose their middle."""
    short = {name: printable(name) for name in names}
    half = NAME_LENGTH // 2
    return {name: f"{s[: half - 1]}…{s[-half:]}" if len(s) > NAME_LENGTH else s for name, s in short.items()}


def save_chart(path: Path, figure: "Figure") -> None:
    """Write a figure as a PNG of 256 colours: a third of the bytes, because records of experiments are committed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_png(path, Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256))


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG that `is_ours` recognises; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = PngInfo()
    metadata.add_text("Software", MADE_BY)
    optimize = image.mode == "P"  # of true colours it takes seconds, and saves little
    write_whole(path, lambda file: image.save(file, "PNG", optimize=optimize, pnginfo=metadata))


def is_ours(path: Path) -> bool:
    """Return whether this project wrote a PNG or JPEG, so that it may be replaced."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MADE_BY or image.info.get("comment") == MADE_BY.encode()
    except OSError:
        return False
