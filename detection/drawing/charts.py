"""Draw charts of detection scores.

Charts are as wide as a column of `ablation.compare`'s page and show a limited number of classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.charts import save_chart, shorten
from stats.bootstrap import RECALL_THRESHOLDS
from stats.image_statistics import Matches
from stats.precision_recall import precision_by_recall

WIDTH = 5.6  # inches
DOTS_PER_INCH = 110
BAR_INCHES = 0.19
MAX_NAMED_CURVES = 8  # if there are more classes, half of these curves show the best classes and half the worst
MAX_BARS = 100  # if there are more classes, half of these bars show the best classes and half the worst
MAX_MATRIX_CLASSES = 12  # rows of the confusion matrix, without the row for "no object"
# Okabe and Ito's palette for colour-blind readers, without yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
BLUE, PALE = COLOURS[0], "#b9d6e8"


def draw_precision(path: Path, matches: Matches) -> None:
    """Write a PNG of precision-recall curves: the mean over classes at each IoU, and each class at IoU 0.5."""
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
    by_iou.set_title(f"mean over {len(names)} classes with objects, by IoU threshold", loc="left", fontsize=10)
    by_class.set_title("each class at IoU 0.5" if names else "no objects", loc="left", fontsize=10)
    for axes in (by_iou, by_class):
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save_chart(path, figure)


def _draw_by_iou(axes: Axes, precision: np.ndarray, iou_thresholds: np.ndarray) -> None:
    """Draw one curve per IoU threshold. precision: (T, 101)."""
    for t, (threshold, curve) in enumerate(zip(iou_thresholds, precision, strict=True)):
        colour = colormaps["viridis"](0.92 * t / max(1, len(precision) - 1))
        axes.plot(RECALL_THRESHOLDS, curve, color=colour, lw=1.5, label=f"{threshold:.2f}: {curve.mean():.3f}")
    _legend(axes, f"IoU: AP; their mean (mAP) is {precision.mean():.3f}", columns=4)


def _draw_by_class(axes: Axes, precision: np.ndarray, names: Sequence[str]) -> None:
    """Draw one curve per class. precision: (101, C)."""
    order = np.argsort(-precision.mean(axis=0), kind="stable")
    named = order
    if len(order) > MAX_NAMED_CURVES:
        named = np.concatenate([order[: MAX_NAMED_CURVES // 2], order[-MAX_NAMED_CURVES // 2 :]])
        axes.plot(RECALL_THRESHOLDS, precision, color="0.75", lw=0.6)
    for label, colour in zip(named, COLOURS, strict=False):
        curve = precision[:, label]
        axes.plot(RECALL_THRESHOLDS, curve, color=colour, lw=1.7, label=f"{curve.mean():.3f} {names[label]}")
    _legend(axes, "AP50" if len(named) == len(order) else "AP50, best and worst; grey: all other classes", columns=2)


def draw_class_scores(path: Path, per_class: Mapping[str, Mapping[str, float | None]], counts: Sequence[int]) -> None:
    """Write a PNG with the AP and AP50 of each class as bars, best class on top, and the number of objects.

    per_class: from coco_scores. counts: number of objects of each class."""
    short = shorten(per_class)
    scores = [(each["AP"], each["AP50"], name, n) for (name, each), n in zip(per_class.items(), counts, strict=True)]
    scores = sorted((score for score in scores if score[0] is not None), key=lambda score: -score[0])
    title = f"AP (dark) and AP50 (pale) of {len(scores)} classes"
    if len(scores) > MAX_BARS:
        scores = scores[: MAX_BARS // 2] + scores[-MAX_BARS // 2 :]
        title = f"{title}: the {MAX_BARS // 2} best and the {MAX_BARS // 2} worst"
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
    axes.set_title(title if scores else "no objects", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_chart(path, figure)


def draw_confusion(path: Path, counts: np.ndarray, class_names: Sequence[str], score_threshold: float) -> None:
    """Write a PNG of a confusion matrix; if there are many classes, show only those with the most errors.

    Cells show counts. Their colour is the fraction of the row total; the last row (no object) has no colour.
    counts: (C + 1, C + 1), from confusion_matrix."""
    short = shorten(class_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares[-1] = 0  # this row counts detections without an object, so there is no number of objects to divide by
    title = f"detections with score ≥ {score_threshold:g}, matched at IoU ≥ 0.5;\ncolour: fraction of the true class"
    shown = np.arange(len(class_names))
    if len(shown) > MAX_MATRIX_CLASSES:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        shown = np.sort(np.argsort(-errors[:-1], kind="stable")[:MAX_MATRIX_CLASSES])
        title = f"the {len(shown)} of {len(class_names)} classes with the most errors;\n{title}"
    names = [short[class_names[label]] for label in shown]
    cells = np.ix_([*shown, -1], [*shown, -1])
    counts, shares = counts[cells], shares[cells]
    side = max(4.4, 2.4 + 0.42 * len(counts))
    figure = Figure((max(WIDTH, side), side), DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ticks = range(len(counts))
    axes.set_xticks(ticks, [*names, "missed"], rotation=90 if len(names) > 4 else 0, parse_math=False)
    axes.set_yticks(ticks, [*names, "no object"], parse_math=False)
    axes.tick_params(length=0)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=colour)
    for line in (axes.axhline, axes.axvline):
        line(len(names) - 0.5, color="0.5", lw=1)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(title, loc="left", fontsize=10)
    save_chart(path, figure)


def _legend(axes: Axes, title: str, columns: int) -> None:
    """Add a legend below the axes, because a legend inside would cover curves."""
    legend = axes.legend(
        title=title, ncols=columns, fontsize=8, title_fontsize=8, alignment="left", frameon=False,
        handlelength=1.4, columnspacing=1.4, loc="upper left", bbox_to_anchor=(0, -0.13), borderaxespad=0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
