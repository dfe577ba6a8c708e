"""The report's plots: what each shows, and how a cell looks in all of them.

Figures are made without pyplot, as narrow as a phone's page, with text of 9 points and more. A cell keeps its colour
and marker from plot to plot; their names are beside the plots, in HTML, where they can wrap.
"""

import html
import io
import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ablation.comparison import Comparison, Difference
from engine.terminal import printable
from records.results import Place

WIDTH = 4.6  # inches
# For matplotlib.rc_context: text stays text (any browser's sans serif is narrower than the one laid out with), ids do
# not depend on the day.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ablation",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
# Okabe and Ito's colours, which all kinds of eyes can tell apart, without the yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Markers, each with the character that stands for it in the legend; U+FE0E asks for text, not for an emoji.
SIGNS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖\ufe0e", "*": "★"}
MARKERS = tuple(SIGNS)
INK = "#333333"


class Look(NamedTuple):
    """How a cell is drawn."""

    colour: str
    marker: str


def is_crowded(comparison: Comparison) -> bool:
    """Whether a colour stands for a column and a marker for a row, because there are more cells than colours."""
    rows, columns = len(comparison.rows), len(comparison.columns)
    return len(comparison.cells) > len(COLOURS) and 1 < rows <= len(MARKERS) and 1 < columns <= len(COLOURS)


def looks(comparison: Comparison) -> dict[Place, Look]:
    """Return a look for every cell, different for up to 56 of them."""
    if is_crowded(comparison):
        colours = dict(zip(comparison.columns, COLOURS, strict=False))
        markers = dict(zip(comparison.rows, MARKERS, strict=False))
        return {(row, column): Look(colours[column], markers[row]) for row, column in comparison.cells}
    pairs = zip(comparison.cells, itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    return {place: Look(colour, marker) for place, colour, marker in pairs}


def legend(comparison: Comparison) -> dict[str, Look]:
    """Return the names that looks stand for: cells, or the columns (without a marker) and rows of a crowded grid."""
    if is_crowded(comparison):
        columns = {name: Look(colour, "") for name, colour in zip(comparison.columns, COLOURS, strict=False)}
        return columns | {name: Look(INK, marker) for name, marker in zip(comparison.rows, MARKERS, strict=False)}
    return {comparison.cells[place].name: look for place, look in looks(comparison).items()}


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as an SVG element of a page: `name` keeps its ids apart from those of other figures."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub("<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(printable(description))}" ', 1))


def _new_figure(height: float) -> tuple[Figure, Axes]:
    """Return a figure of `height` inches with one plot."""
    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def draw_differences(differences: Sequence[Difference], looks: Mapping[str, Look], unit: str) -> Figure:
    """Draw dots and 95% intervals, each under its label; filled and thick where significant.

    looks: by label, for those that are a cell's. unit: what differences are in."""
    labels = [textwrap.wrap(printable(difference.label), 58) for difference in differences]
    step = 0.26 + 0.14 * max(map(len, labels))  # inches
    figure, axes = _new_figure(0.65 + step * len(differences))
    axes.axvline(0, color=INK, lw=1)
    for place, (difference, lines) in enumerate(zip(differences, labels, strict=True)):
        colour, marker = looks.get(difference.label, Look(INK, "o"))
        interval, (width, fill) = difference.interval, (3, colour) if difference.significant else (1.2, "white")
        axes.plot([interval.low, interval.high], [place, place], color=colour, lw=width)
        axes.plot(interval.estimate, place, marker, ms=8, color=colour, mfc=fill)
        text = axes.text(
            0, place - 0.1 / step, "\n".join(lines), transform=axes.get_yaxis_transform(),
            linespacing=1.1, verticalalignment="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip
        text.set_in_layout(False)
    axes.set(yticks=[], ylim=(len(differences) - 1 + 0.15 / step, -1), xlabel=f"difference in {unit}")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.spines["left"].set_visible(False)
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return indices of the Pareto front, the cheapest first.

    points: (cost, score) each. A point is on the front if no other is as cheap and as good, and better in one."""

    def beaten(cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    kept = [index for index, point in enumerate(points) if not beaten(*point)]
    return sorted(kept, key=lambda index: points[index])


def draw_costs(comparison: Comparison, costs: Mapping[Place, float], label: str, more_is_better: bool) -> Figure:
    """Draw score against one kind of cost; the cells of the Pareto front are filled and joined by a line.

    costs: of the cells to draw. more_is_better: of the cost, such as a speed."""
    figure, axes = _new_figure(3.4)
    look, places = looks(comparison), list(costs)
    scores = [comparison.cells[place].mean for place in places]
    signs = -1 if more_is_better else 1, -1 if comparison.lower_is_better else 1
    best = front([(signs[0] * costs[place], signs[1] * score) for place, score in zip(places, scores, strict=True)])
    axes.plot([costs[places[i]] for i in best], [scores[i] for i in best], color=INK, lw=1, ls="--", zorder=1)
    for i, place in enumerate(places):
        colour, marker = look[place]
        axes.errorbar(costs[place], scores[i], yerr=comparison.cells[place].spread or 0, color=colour, lw=1, alpha=0.6)
        axes.plot(costs[place], scores[i], marker, ms=8, color=colour, mfc=colour if i in best else "white")
    axes.set(xlabel=label, ylabel=comparison.metric)
    axes.margins(x=0.12, y=0.12)
    if max(costs.values()) > 10 * min(costs.values()) > 0:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def draw_curves(comparison: Comparison, name: str, label: str, log: bool) -> Figure | None:
    """Draw a number of metrics.jsonl by epoch: a thick line for a cell's mean over seeds, thin ones for the seeds.

    A crowded grid has a panel for each row. Returns None if no run has the number."""
    curves: dict[Place, list[dict[int, float]]] = {}  # for each seed that has any, epoch to value
    for place, cell in comparison.cells.items():
        for run in cell.runs:
            curve = {line["epoch"]: line[name] for line in run.curve if line.get(name) is not None}
            if curve:
                curves.setdefault(place, []).append(curve)
    if not curves:
        return None
    rows, look = [row for row in comparison.rows if any(place[0] == row for place in curves)], looks(comparison)
    panels = [[row] for row in rows] if is_crowded(comparison) else [rows]
    figure = Figure((WIDTH, 3.2 if len(panels) == 1 else 0.4 + 2.1 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        for place, seeds in curves.items():
            if place[0] in panel:
                _draw_seeds(axes, seeds, look[place])
        if len(panels) > 1:
            axes.set_title(panel[0])
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    grid[-1].set_xlabel("epoch")
    if log:
        grid[0].set_yscale("log")
        for axes in grid:
            _plain_log(axes.yaxis)
    else:
        grid[0].set_ylim(bottom=max(0, grid[0].get_ylim()[0]))  # nothing here is negative
    return figure


def _draw_seeds(axes: Axes, seeds: Sequence[Mapping[int, float]], look: Look) -> None:
    """Draw the mean over the seeds at the epochs that all of them have, and each seed where there are several."""
    if len(seeds) > 1:
        for curve in seeds:
            axes.plot(list(curve), list(curve.values()), color=look.colour, lw=0.6, alpha=0.45)
    epochs = sorted(set.intersection(*map(set, seeds)))
    means = [sum(curve[epoch] for curve in seeds) / len(seeds) for epoch in epochs]
    every = math.ceil(len(epochs) / 8) or 1
    axes.plot(epochs, means, color=look.colour, marker=look.marker, ms=5, lw=1.7, markevery=every)


def _plain_log(axis) -> None:
    """Set ticks of a logarithmic axis as plain numbers, enough of them however short it is."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
