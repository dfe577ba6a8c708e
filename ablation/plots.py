"""The report's plots: what each shows, and how a cell looks in all of them.

Figures are made without pyplot, as narrow as a phone's page, with text of 9 points and more. A cell keeps its colour
and marker from plot to plot; the names that go with them stand beside the plots, in HTML, where they can wrap.
"""

import html
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from ablation.comparison import Cell, Comparison, Difference
from engine.terminal import printable
from records.results import Place
from stats.bootstrap import Interval

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
# Okabe and Ito's colours that all kinds of eyes can tell apart, without the yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#333333"
# Where a name may stand by its point: points to the right, points up, which end of the name is there.
LABEL_PLACES = [(8, 0, "left"), (-8, 0, "right")]
LABEL_PLACES += [(0, up, side) for up in (8, -8) for side in ("center", "left", "right")]


class Look(NamedTuple):
    """How a cell is drawn."""

    colour: str
    marker: str


def is_crowded(comparison: Comparison) -> bool:
    """Whether a grid has more cells than colours, so that a colour stands for a column and a marker for a row."""
    return len(comparison.cells) > len(COLOURS) and len(comparison.rows) > 1 and len(comparison.columns) > 1


def looks(comparison: Comparison) -> dict[Place, Look]:
    """A look for every cell, different for up to 56 of them."""
    if _has_pattern(comparison):
        return {
            (row, column): Look(COLOURS[comparison.columns.index(column)], MARKERS[comparison.rows.index(row)])
            for row, column in comparison.cells
        }
    return {
        place: Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        for index, place in enumerate(comparison.cells)
    }


def _has_pattern(comparison: Comparison) -> bool:
    """Whether there are colours for the columns of a crowded grid, and markers for its rows."""
    fits = len(comparison.columns) <= len(COLOURS) and len(comparison.rows) <= len(MARKERS)
    return fits and is_crowded(comparison)


def legend(comparison: Comparison) -> list[tuple[str, str]]:
    """Small SVG drawings with the names they stand for: cells, or the columns and rows of a crowded grid."""
    if _has_pattern(comparison):
        names = {name: Look(colour, "") for name, colour in zip(comparison.columns, COLOURS, strict=False)}
        names |= {name: Look(INK, marker) for name, marker in zip(comparison.rows, MARKERS, strict=False)}
    else:
        names = {comparison.cells[place].name: look for place, look in looks(comparison).items()}
    return [(_key(look), name) for name, look in names.items()]


def _key(look: Look) -> str:
    """A look as a small SVG; one without a marker is a thick line."""
    if not look.marker:
        return (
            f'<svg class="key" viewBox="-11 -6 22 12" aria-hidden="true"><path d="M-11 0H11" stroke="{look.colour}" '
            'stroke-width="5"/></svg>'
        )
    marker = MarkerStyle(look.marker)
    outline = marker.get_path().transformed(marker.get_transform()).to_polygons()[0]
    points = " ".join(f"{10 * x:.1f},{-10 * y:.1f}" for x, y in outline)
    return (
        f'<svg class="key" viewBox="-11 -6 22 12" aria-hidden="true"><path d="M-11 0H11" stroke="{look.colour}" '
        f'stroke-width="2"/><polygon points="{points}" fill="{look.colour}"/></svg>'
    )


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element to stand in a page: `name` keeps its ids apart from those of other figures."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub("<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)


def draw_differences(differences: Sequence[Difference], looks: Mapping[str, Look], what: str) -> Figure:
    """Dots and 95% intervals, each under its label; filled and thick where significant.

    looks: by label, for those that are a cell's. what: they are differences in."""
    labels = [_lines(difference.label, 58) for difference in differences]
    lines = max(map(len, labels))
    step = 0.26 + 0.14 * lines  # inches
    figure = Figure((WIDTH, 0.65 + step * len(differences)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, lw=1)
    for place, difference in enumerate(differences):
        colour, marker = looks.get(difference.label, Look(INK, "o"))
        interval = difference.interval
        axes.plot([interval.low, interval.high], [place, place], color=colour, lw=3 if difference.significant else 1.2)
        axes.plot(
            interval.estimate, place, marker, ms=8, color=colour, mfc=colour if difference.significant else "white"
        )
        text = axes.text(
            0, place - 0.1 / step, "\n".join(map(printable, labels[place])), transform=axes.get_yaxis_transform(),
            linespacing=1.1, verticalalignment="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip
        text.set_in_layout(False)
    axes.set(yticks=[], ylim=(len(differences) - 1 + 0.15 / step, -1), xlabel=f"difference in {what}")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.spines["left"].set_visible(False)
    return figure


def _lines(label: str, width: int) -> list[str]:
    """A label in lines no longer than `width`, broken before the last minus where that helps."""
    if len(label) <= width:
        return [label]
    minuend, minus, subtrahend = label.rpartition(" - ")
    return [line for part in (minuend, f"{minus}{subtrahend}".strip()) for line in textwrap.wrap(part, width)]


def draw_classes(values: Mapping[Place, Mapping[str, Interval]], looks: Mapping[Place, Look], label: str) -> Figure:
    """The score of each class in each cell, with 95% intervals, one class below the other.

    values: for each cell, class name to score; every cell has the same classes."""
    names = list(next(iter(values.values())))
    step = len(values) + 1.6
    figure = Figure((WIDTH, 0.7 + 0.15 * step * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, (look, scores) in enumerate(zip(map(looks.get, values), values.values(), strict=True)):
        colour, marker = look
        for group, name in enumerate(names):
            y = group * step + place + 1
            axes.plot([scores[name].low, scores[name].high], [y, y], color=colour, lw=1.4)
            axes.plot(scores[name].estimate, y, marker, ms=5, color=colour)
    for group, name in enumerate(names):
        axes.text(
            0, group * step, printable(name)[:50], weight="bold", verticalalignment="center",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    axes.set(yticks=[], ylim=(step * len(names) - 0.5, -0.8), xlabel=label)
    axes.spines["left"].set_visible(False)
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto front: points (cost, score) than which no other is as cheap and as good, and better in one.

    The cheapest comes first."""

    def beaten(cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    kept = [index for index, point in enumerate(points) if not beaten(*point)]
    return sorted(kept, key=lambda index: points[index])


def draw_costs(
    costs: Sequence[float],
    cells: Sequence[Cell],
    looks: Sequence[Look],
    label: str,
    metric: str,
    more_is_better: bool,
    lower_is_better: bool = False,
) -> Figure:
    """Score against one kind of cost; filled and joined by a line are the cells of the Pareto front.

    more_is_better: of the cost, such as a speed. lower_is_better: of the score, such as a loss."""
    figure = Figure((WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    scores = [-cell.mean if lower_is_better else cell.mean for cell in cells]
    best = front([(-cost if more_is_better else cost, score) for cost, score in zip(costs, scores, strict=True)])
    axes.plot(
        [costs[index] for index in best], [cells[index].mean for index in best], color=INK, lw=1, ls="--", zorder=1
    )
    for index, (cost, cell, (colour, marker)) in enumerate(zip(costs, cells, looks, strict=True)):
        axes.errorbar(cost, cell.mean, yerr=cell.spread or 0, color=colour, lw=1, alpha=0.6)
        axes.plot(cost, cell.mean, marker, ms=8, color=colour, mfc=colour if index in best else "white")
    axes.set(xlabel=label, ylabel=metric)
    axes.margins(x=0.12, y=0.12)
    if max(costs) > 10 * min(costs) > 0:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    others = sorted(set(range(len(cells))) - set(best), key=lambda index: -scores[index])
    _label_points(axes, [cells[index] for index in (*best, *others)], [costs[index] for index in (*best, *others)])
    return figure


def _label_points(axes: Axes, cells: Sequence[Cell], costs: Sequence[float]) -> None:
    """Write each cell's name by its point, the first ones first, where it covers neither a point nor another name.

    A name for which there is no room is left out: the legend has it."""
    axes.figure.draw_without_rendering()  # from here on the axes have their place, and a text's size is known
    taken = []
    for cell, cost in zip(cells, costs, strict=True):
        (x, bottom), (_, top) = axes.transData.transform(
            [(cost, cell.mean - (cell.spread or 0)), (cost, cell.mean + (cell.spread or 0))]
        )
        taken.append(
            Bbox.from_extents(x - 7, min(bottom, (bottom + top) / 2 - 7), x + 7, max(top, (bottom + top) / 2 + 7))
        )
    for cell, cost in zip(cells, costs, strict=True):
        text = axes.annotate(
            f"{printable(cell.row)}\n{printable(cell.column)}", (cost, cell.mean),
            textcoords="offset points", xytext=(0, 0), linespacing=1.0,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2, "alpha": 0.75}, zorder=1.5,
        )  # fmt: skip
        text.set_in_layout(False)
        for across, up, side in LABEL_PLACES:
            text.set_position((across, up))
            text.set(
                horizontalalignment=side, verticalalignment={-1: "top", 0: "center", 1: "bottom"}[(up > 0) - (up < 0)]
            )
            extent = text.get_window_extent()
            inside = axes.bbox.contains(*extent.min) and axes.bbox.contains(*extent.max)
            if inside and not extent.count_overlaps(taken):
                taken.append(extent)
                break
        else:
            text.remove()


def draw_curves(comparison: Comparison, looks: Mapping[Place, Look], name: str, label: str, log: bool) -> Figure | None:
    """A number of metrics.jsonl by epoch: a thick line for the mean over a cell's seeds, thin ones for the seeds.

    A crowded grid has a panel for each row. None where no run has the number."""
    curves = {place: _seed_curves(cell, name) for place, cell in comparison.cells.items()}
    curves = {place: seeds for place, seeds in curves.items() if seeds}
    if not curves:
        return None
    rows = [row for row in comparison.rows if any(place[0] == row for place in curves)]
    panels = [[row] for row in rows] if is_crowded(comparison) else [rows]
    figure = Figure((WIDTH, 3.2 if len(panels) == 1 else 0.4 + 2.1 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        for place, seeds in curves.items():
            if place[0] in panel:
                _draw_cell_curves(axes, seeds, looks[place])
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


def _seed_curves(cell: Cell, name: str) -> list[dict[int, float]]:
    """For each seed that has any, epoch to value."""
    curves = [{line["epoch"]: line[name] for line in run.curve if line.get(name) is not None} for run in cell.runs]
    return [curve for curve in curves if curve]


def _draw_cell_curves(axes: Axes, seeds: Sequence[Mapping[int, float]], look: Look) -> None:
    """The mean over the seeds at the epochs that all of them have, and each seed where there are several."""
    if len(seeds) > 1:
        for curve in seeds:
            axes.plot(list(curve), list(curve.values()), color=look.colour, lw=0.6, alpha=0.45)
    epochs = sorted(set.intersection(*map(set, seeds)))
    means = [sum(curve[epoch] for curve in seeds) / len(seeds) for epoch in epochs]
    axes.plot(
        epochs, means, color=look.colour, marker=look.marker, ms=5, lw=1.7, markevery=math.ceil(len(epochs) / 8) or 1
    )


def _plain_log(axis) -> None:
    """Ticks of a logarithmic axis as plain numbers, enough of them however short it is."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
