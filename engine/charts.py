"""What charts of classes share, whatever the task: names that fit beside them, and PNG files that are small."""

from collections import Counter
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from engine.files import write_whole
from engine.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME_LENGTH = 22  # of a class, in letters


def shorten(names: Iterable[str]) -> dict[str, str]:
    """Class names as they fit beside a chart, each by the whole name, no two of them alike.

    They are cut at the end; in the middle where that makes two alike; and numbered where they differ nowhere else."""
    short = {name: printable(name) for name in names}
    for cut in (
        lambda name: name[: NAME_LENGTH - 1].rstrip() + "…",
        lambda name: f"{name[: NAME_LENGTH // 2 - 1]}…{name[-NAME_LENGTH // 2 :]}",
    ):
        taken = Counter(short.values())
        long = [name for name, shown in short.items() if len(shown) > NAME_LENGTH or taken[shown] > 1]
        short |= {name: cut(printable(name)) for name in long}
    taken = Counter(short.values())
    for position, (name, shown) in enumerate(short.items()):
        if taken[shown] > 1:
            numbered = (f"{printable(name)[: NAME_LENGTH - 6]}… {number}" for number in count(position))
            short[name] = next(text for text in numbered if text not in taken)
            taken[short[name]] = 1
    return short


def save_chart(path: Path, figure: "Figure") -> None:
    """Write a figure as a PNG of 256 colours: a third of the bytes, for records of experiments are to be committed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rendered = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256)
    write_whole(path, lambda file: rendered.save(file, "PNG", optimize=True))
