"""The plots of the HTML report, as matplotlib figures (made without pyplot).

Figures fit the width of a phone screen and have text of at least 10 points. A cell has the same colour and marker in
all plots. The legend is HTML beside the plots, so that long names can wrap.
"""

import html
import io
import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ablation.comparison import Comparison, Difference
from ablation.display.sentences import unit_of
from engine.terminal import printable
from records.results import Place
from stats.pareto import Membership

if TYPE_CHECKING:
    from ablation.tuning import Tuning

WIDTH = 4.6  # inches
LEGEND_WIDTH = 58  # characters of 8 points
# For matplotlib.rc_context. Text stays text in the SVG. It fits in every browser, because matplotlib's layout uses a
# wider font than browsers' sans serif fonts. The fixed salt makes ids deterministic.
RC_PARAMS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ablation",
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
# Okabe and Ito's colours, distinct for colour-blind readers. Yellow is omitted, because it is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Markers of matplotlib, each with its character in the legend. U+FE0E selects the text form, not the emoji.
MARKER_SIGNS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖\ufe0e", "*": "★"}
MARKERS = tuple(MARKER_SIGNS)
INK = "#333333"
SHADE = "#e8ebef"
# Fill of the marker of a cell that is on the Pareto front for sure, maybe, or not
FILLS = {
    Membership.YES: {},
    Membership.MAYBE: {"fillstyle": "left", "markerfacecoloralt": "white"},
    Membership.NO: {"markerfacecolor": "white"},
}
FRONT_LABELS = {
    Membership.YES: "on the Pareto front for sure",
    Membership.MAYBE: "may be on the front",
    Membership.NO: "not on the front",
}


PAPER, SHADE = "#ffffff", "#e8ebef"
# Colours that the page replaces by its own, so that plots are legible on a dark page
THEME = {INK: "var(--ink)", "#000000": "var(--ink)", PAPER: "var(--paper)", SHADE: "var(--track)"}


class CellStyle(NamedTuple):
    """The colour and marker of a cell."""

    colour: str
    marker: str


def is_crowded(comparison: Comparison) -> bool:
    """Return whether to show columns by colour and rows by marker, because there are more cells than colours."""
    rows, columns = len(comparison.rows), len(comparison.columns)
    return len(comparison.cells) > len(COLOURS) and 1 < rows <= len(MARKERS) and 1 < columns <= len(COLOURS)


def cell_styles(comparison: Comparison) -> dict[Place, CellStyle]:
    """Return a style for every cell. Up to 56 cells (7 colours x 8 markers) have distinct styles."""
    if is_crowded(comparison):
        colours = dict(zip(comparison.columns, COLOURS, strict=False))
        markers = dict(zip(comparison.rows, MARKERS, strict=False))
        return {(row, column): CellStyle(colours[column], markers[row]) for row, column in comparison.cells}
    pairs = zip(comparison.cells, itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    return {place: CellStyle(colour, marker) for place, colour, marker in pairs}


def legend(comparison: Comparison) -> dict[str, CellStyle]:
    """Return a dict from name to style for the legend: of cells, or of columns and rows if the grid is crowded."""
    if is_crowded(comparison):
        columns = {name: CellStyle(colour, "") for name, colour in zip(comparison.columns, COLOURS, strict=False)}
        return columns | {name: CellStyle(INK, marker) for name, marker in zip(comparison.rows, MARKERS, strict=False)}
    return {comparison.cells[place].name: style for place, style in cell_styles(comparison).items()}


def themed(text: str) -> str:
    """Return the text with the colours of THEME replaced by the page's variables."""
    return re.sub("|".join(THEME), lambda found: THEME[found[0]], text)


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as an inline SVG element. name: prefix that makes the SVG's ids unique."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub("<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    text = themed(re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :]))
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(printable(description))}" ', 1))


def _new_figure(height: float) -> tuple[Figure, Axes]:
    """Return a figure with one plot, and the axes of the plot. height: in inches."""
    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def draw_differences(
    differences: Sequence[Difference],
    styles: Mapping[str, CellStyle],
    comparison: Comparison,
    ends: tuple[float, float],
) -> Figure:
    """Draw each difference below its label: a dot, its 95% interval, and thinner its corrected interval.

    Significant ones are filled. The margin, if any, is shaded.
    styles: dict from label to style; labels without a style are drawn in grey. ends: lowest and highest end of all
    intervals on the page, for one scale in all plots."""
    labels = [textwrap.wrap(printable(difference.label), 52) for difference in differences]
    step = 0.26 + 0.155 * max(map(len, labels))  # inches
    figure, axes = _new_figure(0.65 + step * len(differences))
    axes.axvline(0, color=INK, lw=1)
    if comparison.margin is not None:
        axes.axvspan(-comparison.margin, comparison.margin, color=SHADE, lw=0, zorder=0)
    for place, (difference, lines) in enumerate(zip(differences, labels, strict=True)):
        colour, marker = styles.get(difference.label, CellStyle(INK, "o"))
        interval, is_bold = difference.interval, difference.is_significant and comparison.covers_seeds
        axes.plot(difference.simultaneous, [place, place], color=colour, lw=1)
        axes.plot([interval.low, interval.high], [place, place], color=colour, lw=3.5, solid_capstyle="butt")
        axes.plot(interval.estimate, place, marker, ms=8, color=colour, mfc=colour if is_bold else "white")
        text = axes.text(
            0, place - 0.1 / step, "\n".join(lines), transform=axes.get_yaxis_transform(),
            linespacing=1.1, verticalalignment="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip
        text.set_in_layout(False)
    space = 0.04 * (ends[1] - ends[0]) or 1
    axes.set(yticks=[], ylim=(len(differences) - 1 + 0.15 / step, -1), xlim=(ends[0] - space, ends[1] + space))
    axes.set_xlabel(f"difference in {unit_of(comparison)}")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.spines["left"].set_visible(False)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points on the Pareto front, sorted by cost.

    points: (cost, score); low costs and high scores are better. A point is on the front if no other dominates it."""

    def is_dominated(cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    best = [index for index, point in enumerate(points) if not is_dominated(*point)]
    return sorted(best, key=lambda index: points[index])


def draw_costs(comparison: Comparison, costs: Mapping[Place, float], label: str, more_is_better: bool) -> Figure:
    """Draw score against one kind of cost; markers on the Pareto front are filled and joined by a line.

    costs: dict from cell to cost; cells without a cost are not drawn. more_is_better: whether high costs are better."""
    figure, axes = _new_figure(3.4)
    styles, places = cell_styles(comparison), list(costs)
    scores = [comparison.cells[place].mean for place in places]
    signs = -1 if more_is_better else 1, -1 if comparison.lower_is_better else 1
    points = [(signs[0] * costs[place], signs[1] * score) for place, score in zip(places, scores, strict=True)]
    best = pareto_front(points)
    axes.plot([costs[places[i]] for i in best], [scores[i] for i in best], color=INK, lw=1, ls="--", zorder=1)
    for i, place in enumerate(places):
        colour, marker = styles[place]
        axes.errorbar(costs[place], scores[i], yerr=comparison.cells[place].spread or 0, color=colour, lw=1, alpha=0.6)
        axes.plot(costs[place], scores[i], marker, ms=8, color=colour, mfc=colour if i in best else "white")
    axes.set(xlabel=label, ylabel=comparison.metric)
    axes.margins(x=0.12, y=0.12)
    if max(costs.values()) > 10 * min(costs.values()) > 0:
        axes.set_xscale("log")
        _use_plain_log_ticks(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def draw_latency(comparison: Comparison) -> Figure:
    """Draw score against latency, with the 95% interval of both. The marker shows whether a cell is on the front.

    Filled: for sure. Half filled: maybe, also if it was not tested. Empty: no. Latencies above the budget are grey."""
    figure, axes = _new_figure(3.4)
    styles, found = cell_styles(comparison), comparison.latencies
    for place, latency in found.cells.items():
        colour, marker = styles[place]
        score = comparison.intervals.get(place, {}).get(comparison.metric)
        low, high = (score.low, score.high) if score else (math.nan, math.nan)
        mean, fill = comparison.cells[place].mean, FILLS[found.front.get(place, Membership.MAYBE)]
        line = {"color": colour, "lw": 1.5, "alpha": 0.6}
        axes.plot([latency.p50_low, latency.p50_high], [mean, mean], **line)
        axes.plot([latency.p50, latency.p50], [low, high], **line)
        axes.plot(latency.p50, mean, marker, ms=8, color=colour, zorder=3, **fill)
    axes.set(xlabel="latency p50 (ms per image)", ylabel=comparison.metric)
    axes.margins(x=0.12, y=0.12)
    times = [each.p50 for each in found.cells.values()]
    if max(times) > 10 * min(times):
        axes.set_xscale("log")
        _use_plain_log_ticks(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    if found.budget:
        first, last = axes.get_xlim()
        axes.axvspan(min(max(found.budget.limit, first), last), last, color=SHADE, lw=0, zorder=0)
        axes.set_xlim(first, last)
    return figure


def write_latency_plot(path: Path, comparison: Comparison) -> None:
    """Write the plot of score against latency to a file, with the names of the cells and what the markers mean."""
    with rc_context(RC_PARAMS):
        figure, found = draw_latency(comparison), comparison.latencies
        unmeasured = {cell.name for place, cell in comparison.cells.items() if place not in found.cells}
        names = {
            textwrap.fill(printable(name), LEGEND_WIDTH): style
            for name, style in legend(comparison).items()
            if name not in unmeasured
        }
        entries = [
            Line2D([], [], ls="", marker=style.marker or "s", color=style.colour, label=name)
            for name, style in names.items()
        ]
        entries += [
            Line2D([], [], ls="", marker="o", color=INK, label=FRONT_LABELS[each], **FILLS[each])
            for each in Membership
            if each in found.front.values()
        ]
        if found.budget:
            entries.append(Patch(color=SHADE, label=f"slower than {found.budget.limit:g} ms"))
        figure.set_figheight(3.4 + 0.19 * len(entries) + 0.14 * "".join(names).count("\n"))
        figure.legend(handles=entries, loc="outside lower left", fontsize=8, frameon=False)
        figure.savefig(path, dpi=200)


def draw_curves(comparison: Comparison, name: str, label: str, log: bool) -> Figure | None:
    """Draw a value of metrics.jsonl by epoch: thick lines for the cells' means over seeds, thin lines for single seeds.

    A crowded grid has one panel per row. Returns None if no run recorded the value."""
    curves: dict[Place, list[dict[int, float]]] = {}  # per cell, one {epoch: value} for each seed that has values
    for place, cell in comparison.cells.items():
        for run in cell.runs:
            curve = {line["epoch"]: line[name] for line in run.curve if line.get(name) is not None}
            if curve:
                curves.setdefault(place, []).append(curve)
    if not curves:
        return None
    rows, styles = [row for row in comparison.rows if any(place[0] == row for place in curves)], cell_styles(comparison)
    panels = [[row] for row in rows] if is_crowded(comparison) else [rows]
    figure = Figure((WIDTH, 3.2 if len(panels) == 1 else 0.4 + 2.1 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        for place, seeds in curves.items():
            if place[0] in panel:
                _draw_seeds(axes, seeds, styles[place])
        if len(panels) > 1:
            axes.set_title(panel[0])
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    grid[-1].set_xlabel("epoch")
    if log:
        grid[0].set_yscale("log")
        for axes in grid:
            _use_plain_log_ticks(axes.yaxis)
    else:
        grid[0].set_ylim(bottom=max(0, grid[0].get_ylim()[0]))  # no value is negative
    return figure


def draw_budget(tuning: "Tuning", styles: Mapping[str, CellStyle]) -> Figure:
    """Draw the expected best score by number of trials: a line with its band for each row or cell.

    styles: by name of the row or cell."""
    figure, axes = _new_figure(3.4)
    for owner, curve in zip(tuning.tuned, tuning.curves, strict=True):
        style, trials = styles[owner.name], range(1, len(curve.estimate) + 1)
        axes.fill_between(trials, curve.low, curve.high, color=style.colour, alpha=0.15, lw=0)
        axes.plot(trials, curve.estimate, color=style.colour, marker=style.marker, ms=5, lw=1.7)
    axes.set(xlabel=f"trials per {tuning.config.per}", ylabel=f"expected best {tuning.metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _draw_seeds(axes: Axes, seeds: Sequence[Mapping[int, float]], style: CellStyle) -> None:
    """Draw the mean over seeds, at epochs recorded for all seeds. If there are several seeds, also draw each seed."""
    if len(seeds) > 1:
        for curve in seeds:
            axes.plot(list(curve), list(curve.values()), color=style.colour, lw=0.6, alpha=0.45)
    epochs = sorted(set.intersection(*map(set, seeds)))
    means = [sum(curve[epoch] for curve in seeds) / len(seeds) for epoch in epochs]
    every = math.ceil(len(epochs) / 8) or 1
    axes.plot(epochs, means, color=style.colour, marker=style.marker, ms=5, lw=1.7, markevery=every)


def _use_plain_log_ticks(axis) -> None:
    """Label a logarithmic axis with plain numbers, and with enough ticks for a short range."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
