"""Charts: how well a detector does, and how its default boxes fit the training objects.

The former are as narrow as a column of `ablation.compare`'s page, which shows them side by side. Of many classes they
show those that stand out, by name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detection.drawing.boxes import UNMATCHED, level_colour
from engine.charts import save_chart, shorten
from engine.terminal import printable
from stats.bootstrap import RECALL_THRESHOLDS
from stats.image_statistics import Matches
from stats.precision_recall import precision_by_recall

WIDTH = 5.6  # inches
DOTS_PER_INCH = 110
BAR_INCHES = 0.19
NAMED_CURVES = 8  # with more classes, half of them are the best and half the worst
MOST_BARS = 100  # with more classes, half of them are the best and half the worst
MATRIX_CLASSES = 12  # with more, a list of what is most frequent
MOST_FREQUENT = 15
SIZE_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # pixels
# Okabe and Ito's colours that all kinds of eyes can tell apart, without the yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
BLUE, PALE, RED = COLOURS[0], "#b9d6e8", COLOURS[1]


def draw_precision(path: Path, matches: Matches) -> None:
    """Write a PNG of precision by recall: the mean over classes at each IoU, and each class at IoU 0.5."""
    precision = precision_by_recall(matches)  # (T, 101, C)
    has_objects = ~np.isnan(precision[0, 0])
    short = shorten(matches.class_names.tolist())
    precision = precision[:, :, has_objects]
    names = [short[name] for name in matches.class_names[has_objects].tolist()]
    figure = Figure((WIDTH, 9.6), DOTS_PER_INCH, layout="constrained")
    by_iou, by_class = figure.subplots(2, 1)
    if names:
        _draw_by_iou(by_iou, precision.mean(axis=2), matches.iou_thresholds)
        _draw_by_class(by_class, precision[0], names)
    by_iou.set_title(f"mean over {len(names)} classes with objects, by IoU asked for", loc="left", fontsize=10)
    by_class.set_title("each class at IoU 0.5" if names else "no objects to find", loc="left", fontsize=10)
    for axes in (by_iou, by_class):
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save_chart(path, figure)


def _draw_by_iou(axes: Axes, precision: np.ndarray, iou_thresholds: np.ndarray) -> None:
    """precision: (T, 101)."""
    for t, (threshold, curve) in enumerate(zip(iou_thresholds, precision, strict=True)):
        colour = colormaps["viridis"](0.92 * t / max(1, len(precision) - 1))
        axes.plot(RECALL_THRESHOLDS, curve, color=colour, lw=1.5, label=f"{threshold:.2f}: {curve.mean():.3f}")
    _legend(axes, f"IoU: AP; the mean of all is the mAP, {precision.mean():.3f}", columns=4)


def _draw_by_class(axes: Axes, precision: np.ndarray, names: Sequence[str]) -> None:
    """precision: (101, C)."""
    order = np.argsort(-precision.mean(axis=0), kind="stable")
    named = order
    if len(order) > NAMED_CURVES:
        named = np.concatenate([order[: NAMED_CURVES // 2], order[-NAMED_CURVES // 2 :]])
        axes.plot(RECALL_THRESHOLDS, precision, color="0.75", lw=0.6)
    for label, colour in zip(named, COLOURS, strict=False):
        curve = precision[:, label]
        axes.plot(RECALL_THRESHOLDS, curve, color=colour, lw=1.7, label=f"{curve.mean():.3f} {names[label]}")
    _legend(axes, "AP50" if len(named) == len(order) else "AP50, best and worst; grey: the others", columns=2)


def draw_class_scores(path: Path, per_class: Mapping[str, Mapping[str, float | None]], counts: Sequence[int]) -> None:
    """Write a PNG of the AP and AP50 of each class as bars, the best on top, with how many objects it has.

    per_class: as coco_scores gives it. counts: objects of each class."""
    short = shorten(per_class)
    scores = [(each["AP"], each["AP50"], name, n) for (name, each), n in zip(per_class.items(), counts, strict=True)]
    scores = sorted((score for score in scores if score[0] is not None), key=lambda score: -score[0])
    title = f"AP (dark) and AP50 (pale) of {len(scores)} classes"
    if len(scores) > MOST_BARS:
        scores = scores[: MOST_BARS // 2] + scores[-MOST_BARS // 2 :]
        title = f"{title}: the {MOST_BARS // 2} best and the {MOST_BARS // 2} worst"
    figure = Figure((WIDTH, 0.9 + BAR_INCHES * len(scores)), DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(scores))
    axes.barh(rows, [score for _, score, *_ in scores], color=PALE)
    axes.barh(rows, [score for score, *_ in scores], color=BLUE, height=0.5)
    for row, (ap, _, _, count) in enumerate(scores):
        axes.text(1.01, row, f"{ap:.3f}  {count:>7,}", va="center", fontsize=8, family="monospace")
    if scores:
        axes.text(1.01, -0.9, f"{'AP':<5}  objects", va="center", fontsize=8, family="monospace")
    axes.set_yticks(rows, [short[name] for *_, name, _ in scores], fontsize=8, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(len(scores) - 0.4, -0.6))
    axes.grid(alpha=0.3, axis="x")
    axes.set_title(title if scores else "no objects to find", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_chart(path, figure)


def draw_confusion(path: Path, counts: np.ndarray, class_names: Sequence[str], score_threshold: float) -> None:
    """Write a PNG of which class is taken for which: the matrix, or of many classes what is most frequent.

    counts: (C + 1, C + 1), of confusion_matrix."""
    short = shorten(class_names)
    names = [short[name] for name in class_names]
    draw = _draw_matrix if len(names) <= MATRIX_CLASSES else _draw_lists
    save_chart(path, draw(counts, names, f"detections of score ≥ {score_threshold:g}, matched at IoU ≥ 0.5"))


def _draw_matrix(counts: np.ndarray, names: list[str], title: str) -> Figure:
    """Numbers of objects, coloured by their share of those of the class, which is a row; below, of what is nothing."""
    side = max(4.4, 2.4 + 0.42 * len(counts))
    figure = Figure((max(WIDTH, side), side), DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares[-1] = 0  # of nothing there is no such number
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ticks = range(len(counts))
    axes.set_xticks(ticks, [*names, "not found"], rotation=90 if len(names) > 4 else 0, parse_math=False)
    axes.set_yticks(ticks, [*names, "nothing there"], parse_math=False)
    axes.tick_params(length=0)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=colour)
    for line in (axes.axhline, axes.axvline):
        line(len(names) - 0.5, color="0.5", lw=1)
    axes.set(xlabel="found as", ylabel="is")
    axes.set_title(f"{title};\ncolour: share of the objects of a class", loc="left", fontsize=10)
    return figure


def _draw_lists(counts: np.ndarray, names: list[str], title: str) -> Figure:
    """The most frequent confusions, the classes that are missed most, and those found most where nothing is."""
    wrong = counts[:-1, :-1] * (1 - np.eye(len(names), dtype=np.int64))
    objects = counts[:-1].sum(axis=1)
    lists = {
        "is → taken for": [(f"{names[a]} → {names[b]}", n, f"{n:,}") for a, b, n in _largest(wrong)],
        "not found": [(names[a], n, f"{n:,} of {objects[a]:,}") for a, _, n in _largest(counts[:-1, -1:])],
        "found where nothing is, or twice": [(names[b], n, f"{n:,}") for _, b, n in _largest(counts[-1:, :-1])],
    }
    heights = [0.45 + BAR_INCHES * max(1, len(bars)) for bars in lists.values()]
    figure = Figure((WIDTH, 0.4 + sum(heights)), DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=10)
    for axes, (kind, bars) in zip(figure.subplots(len(lists), 1, height_ratios=heights), lists.items(), strict=True):
        drawn = axes.barh(range(len(bars)), [count for _, count, _ in bars], color=RED)
        axes.bar_label(drawn, [text for *_, text in bars], fontsize=8, padding=2)
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=8, parse_math=False)
        axes.set_ylim(max(1, len(bars)) - 0.4, -0.6)
        axes.margins(x=0.2)
        axes.set_xticks([])  # the bars are labelled
        axes.set_title(kind if bars else f"{kind}: none", loc="left", fontsize=10)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def _largest(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """Row, column and number of the largest counts, none of them 0."""
    order = np.argsort(-counts, axis=None, kind="stable")[:MOST_FREQUENT]
    places = np.stack(np.unravel_index(order, counts.shape), axis=1).tolist()
    return [(row, column, int(counts[row, column])) for row, column in places if counts[row, column]]


def draw_classes(path: Path, names: Sequence[str], counts: Sequence[int], recalls: Sequence[float | None]) -> None:
    """Write a PNG: of each class how many objects it has, and the share of these that a default box fits.

    Of more than MOST_BARS classes, the most frequent."""
    order = sorted(range(len(names)), key=lambda index: -counts[index])[:MOST_BARS]
    names, counts, recalls = ([values[index] for index in order] for values in (names, counts, recalls))
    figure = Figure((10, 1.0 + 0.2 * len(names)), DOTS_PER_INCH, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(names))
    left.bar_label(left.barh(rows, counts, color="0.6"), [f"{count:,}" for count in counts], padding=3, fontsize=8)
    left.set_title("objects", loc="left", fontsize=10)
    left.set_xscale("log" if max(counts) > 50 * max(1, min(counts)) else "linear")
    left.margins(x=0.15)
    left.set_yticks(rows, list(map(printable, names)), fontsize=8, parse_math=False)
    left.set_ylim(len(names) - 0.4, -0.6)
    shares = np.array([recall or 0.0 for recall in recalls])
    missing = np.array([0.0 if recall is None else 1 - recall for recall in recalls])
    right.barh(rows, shares, color="0.6")
    rest = right.barh(rows, missing, left=shares, color=UNMATCHED)
    right.bar_label(rest, ["" if r is None else f"{r:.3f}" for r in recalls], padding=3, fontsize=8)
    right.set_title("recall of the default boxes; red: objects that none fits", loc="left", fontsize=10)
    right.set(xlim=(0, 1.15), xticks=np.linspace(0, 1, 6))  # room for the numbers
    save_chart(path, figure)


def draw_sizes(
    path: Path, objects: Mapping[str, tuple[np.ndarray, np.ndarray]], levels: Sequence[tuple[float, float]]
) -> None:
    """Write a PNG: how large the objects are, in red those that no default box fits, over what each level can match.

    objects: by title, sides (n,) in pixels and whether a box fits (n,) bool. levels: smallest and largest side of
    each, pixels. The side of a box is the square root of its area."""
    figure = Figure((10, 3 * len(objects) + 2.5), DOTS_PER_INCH, layout="constrained")
    *histograms, spans = figure.subplots(len(objects) + 1, 1, sharex=True, height_ratios=[3] * len(objects) + [2])
    every_side = np.concatenate([sides for sides, _ in objects.values()] + [np.ravel(levels)])
    bins = np.geomspace(every_side.min(), every_side.max(), 61)
    for axes, (title, (sides, is_matched)) in zip(histograms, objects.items(), strict=True):
        axes.hist([sides[is_matched], sides[~is_matched]], bins, stacked=True, color=["0.6", UNMATCHED])
        axes.set_title(f"objects, {title}; red: no default box fits", loc="left", fontsize=10)
        axes.set_ylabel("objects")
        axes.yaxis.get_major_locator().set_params(integer=True)
    for row, (smallest, largest) in enumerate(levels):
        spans.barh(row, largest - smallest, left=smallest, color=level_colour(row))
    spans.set_yticks(range(len(levels)), [f"level {number + 1}" for number in range(len(levels))])
    spans.invert_yaxis()
    spans.set_title("sizes that the default boxes of each level can match", loc="left", fontsize=10)
    spans.set_xscale("log")
    spans.set_xlabel("square root of the area, pixels of the network's input")
    ticks = [tick for tick in SIZE_TICKS if every_side.min() <= tick <= every_side.max()]
    spans.set_xticks(ticks, [str(tick) for tick in ticks])
    spans.minorticks_off()
    save_chart(path, figure)


def _legend(axes: Axes, title: str, columns: int) -> None:
    """Below the axes: inside it would lie on curves."""
    legend = axes.legend(
        title=title, ncols=columns, fontsize=8, title_fontsize=8, alignment="left", frameon=False,
        handlelength=1.4, columnspacing=1.4, loc="upper left", bbox_to_anchor=(0, -0.13), borderaxespad=0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
