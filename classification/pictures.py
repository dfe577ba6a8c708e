"""Pictures of a classifier: its confusion matrix, and its guesses on a few images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from engine.charts import save_chart, shorten

DOTS_PER_INCH = 110
MATRIX_CLASSES = 25  # more of them in one matrix cannot be read
PAIRS = 25  # shown of more classes
COLUMNS = 4  # of examples


def draw_confusion(path: Path, labels: np.ndarray, guesses: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a PNG of which class was taken for which: the whole matrix, or of many classes the most frequent pairs.

    labels, guesses: (N,) int, the true class and the guessed one of each image."""
    short = shorten(class_names)
    names = [short[name] for name in class_names]
    figure = (_matrix if len(names) <= MATRIX_CLASSES else _pairs)(labels, guesses, names)
    save_chart(path, figure)


def _matrix(labels: np.ndarray, guesses: np.ndarray, names: list[str]) -> Figure:
    """Share of the images of each class (a row) that were taken for each class (a column), in percent."""
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (labels, guesses), 1)
    side = max(4.4, 2.6 + 0.42 * len(names))
    figure = Figure((side, side), DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90, parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.tick_params(length=0)
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = shares[row, column]
        text = f"{share:.0f}" if share >= 1 else "<1"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 55 else "black")
    axes.set_xlabel("guessed")
    axes.set_ylabel("true")
    _title(figure, "% of the images of each class")
    return figure


def _pairs(labels: np.ndarray, guesses: np.ndarray, names: list[str]) -> Figure:
    """The most frequent confusions, as bars, each with the number of images of its true class."""
    wrong = labels != guesses
    pairs, counts = np.unique(np.stack([labels[wrong], guesses[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PAIRS]
    pairs, counts = pairs[order], counts[order]
    figure = Figure((8, 1 + 0.26 * len(pairs)), DOTS_PER_INCH, layout="constrained")
    if not len(pairs):
        _title(figure, f"no confusions: all of {len(labels):,} images are right")
        return figure
    _title(figure, f"most frequent confusions, true → guessed, of {len(labels):,} images")
    axes = figure.add_subplot()
    bars = axes.barh(range(len(pairs)), counts, color="#4878b0")
    images = np.bincount(labels)[pairs[:, 0]]  # of the true class
    axes.bar_label(bars, [f"{n:,} of {of:,}" for n, of in zip(counts, images, strict=True)], fontsize=8, padding=2)
    labels = [f"{names[true]} → {names[guessed]}" for true, guessed in pairs]
    axes.set_yticks(range(len(pairs)), labels, parse_math=False)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.margins(x=0.2)
    axes.set_xticks([])  # the bars are labelled
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def _title(figure: Figure, text: str) -> None:
    """Above the whole figure: above the axes, which long names push to the right, it would be cut off."""
    figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=10)


class Example(NamedTuple):
    """An image and what was guessed."""

    image: Image.Image
    true_name: str
    names: list[str]  # guessed, best first
    probabilities: list[float]


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write a PNG of images, each with its true class and the best guesses: green where the first is right."""
    short = shorten(name for example in examples for name in (example.true_name, *example.names))
    rows = -(-len(examples) // COLUMNS)
    height = 3 + 0.2 * max(len(example.names) for example in examples)  # inches: a square image, its title, its guesses
    figure = Figure((2.7 * COLUMNS, height * rows), DOTS_PER_INCH, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, example in zip(panels, examples, strict=False):
        axes.imshow(example.image, interpolation="nearest" if example.image.width < 100 else "antialiased")
        axes.set_title(short[example.true_name], fontsize=9, loc="left", parse_math=False)
        for line, (name, probability) in enumerate(zip(example.names, example.probabilities, strict=True)):
            colour = "#1a7f37" if name == example.true_name else "#b3261e" if line == 0 else "#555555"
            axes.annotate(  # offset in points: the layout makes room for them before it knows the height of the image
                f"{probability:4.0%}  {short[name]}", (0, 0), (0, -4 - 13 * line), "axes fraction", "offset points",
                va="top", fontsize=8, color=colour, parse_math=False,
            )  # fmt: skip
    save_chart(path, figure)
