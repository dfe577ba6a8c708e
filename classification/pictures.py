"""Charts of a classifier: its confusion matrix, and its predictions for a few images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from classification.task import Predictions
from data import LabelledImages
from engine.charts import save_chart, shorten

DOTS_PER_INCH = 110
MAX_MATRIX_CLASSES = 25  # a larger matrix is unreadable
EXAMPLE_COLUMNS = 4
EXAMPLES = 12  # images
EXAMPLE_PREDICTIONS = 3  # per image


def draw_confusion(path: Path, labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> None:
    """Write the confusion matrix as a PNG: rows are true classes, columns are predicted classes, in percent of the row.

    If there are more than MAX_MATRIX_CLASSES classes, only the most frequently confused classes are shown.
    labels, predicted: (N,) int, true and predicted class of each image."""
    classes = np.arange(len(class_names))
    if len(classes) > MAX_MATRIX_CLASSES:
        wrong = labels != predicted
        pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
        by_count = pairs[np.argsort(-counts, kind="stable")].ravel()
        classes = np.sort(list(dict.fromkeys([*by_count.tolist(), *classes.tolist()]))[:MAX_MATRIX_CLASSES])
    rows = [np.bincount(predicted[labels == label], minlength=len(class_names)) for label in classes]
    shares = np.stack([100 * row[classes] / max(row.sum(), 1) for row in rows])
    short = shorten(class_names)
    names = [short[class_names[label]] for label in classes]
    side = max(4.4, 2.6 + 0.42 * len(names))
    figure = Figure((side, side), DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(length=0)
    for row, column in zip(*np.nonzero(shares), strict=True):
        share = shares[row, column]
        text = f"{share:.0f}" if share >= 1 else "<1"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 55 else "black")
    axes.set(xlabel="predicted", ylabel="true")
    note = f", the {len(names)} most confused of {len(class_names):,}" if len(names) < len(class_names) else ""
    # Long class names push the axes to the right, where a title of the axes would be cut off.
    figure.suptitle(f"% of the images of each class{note}", x=0.01, horizontalalignment="left", fontsize=10)
    save_chart(path, figure)


def draw_examples(path: Path, images: LabelledImages, predictions: Predictions) -> None:
    """Write a PNG of a few images, spread evenly over the split, each with its true class and top predictions.

    A correct prediction is green, a wrong top-1 prediction is red. predictions: of all images, in order."""
    short = shorten(images.class_names)
    names = [short[name] for name in images.class_names]
    chosen = np.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).round().astype(int)
    rows = -(-len(chosen) // EXAMPLE_COLUMNS)
    height = 3 + 0.2 * EXAMPLE_PREDICTIONS  # inches, for a square image, its title and its predictions
    figure = Figure((2.7 * EXAMPLE_COLUMNS, height * rows), DOTS_PER_INCH, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    panels = figure.subplots(rows, EXAMPLE_COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, chosen, strict=False):
        image, label = images.read(index), images.labels[index]
        axes.imshow(image, interpolation="nearest" if image.width < 100 else "antialiased")
        axes.set_title(names[label], fontsize=9, loc="left", parse_math=False)
        best = zip(predictions.classes[index, :EXAMPLE_PREDICTIONS], predictions.probabilities[index], strict=False)
        for line, (output, probability) in enumerate(best):
            colour = "#1a7f37" if output == label else "#b3261e" if line == 0 else "#555555"
            axes.annotate(  # offset in points, because the layout reserves this space before it sizes the image
                f"{probability:4.0%}  {names[output]}", (0, 0), (0, -4 - 13 * line), "axes fraction", "offset points",
                va="top", fontsize=8, color=colour, parse_math=False,
            )  # fmt: skip
    save_chart(path, figure)
