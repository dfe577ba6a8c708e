"""metrics.jsonl: a line for each epoch, units in the key names; and what is made of it.

metrics.csv is the same as a table, for spreadsheets; curves.png shows it.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from engine.files import set_aside, write_text
from engine.logbook import logger


def write_metrics(experiment: Path, lines: Sequence[dict]) -> None:
    """Write every epoch so far to metrics.jsonl and metrics.csv, in place of what is there.

    The whole file each time: a run that knows its epochs does not depend on what happens to the file meanwhile."""
    write_text(experiment / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    _write_table(experiment, lines)


def read_metrics(experiment: Path) -> list[dict]:
    """Return every epoch written so far, oldest first. Raises ValueError naming the file if it is damaged."""
    path = experiment / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="backslashreplace")
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]  # one may be cut
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON line by line ({error}); move it away") from None
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"{path}: damaged, line {number} is no line of an epoch: {line!r:.50}; move it away")
    return lines


def restore_metrics(experiment: Path, lines: Sequence[dict]) -> None:
    """Reduce metrics.jsonl to the epochs of a checkpoint: a resumed run writes the later ones again.

    A file that lacks one of them, or has different content in its place, is kept aside and reported."""
    path = experiment / "metrics.jsonl"
    try:
        found = read_metrics(experiment)[: len(lines)]
        damage = f"{path}: {len(found)} of {len(lines)} epochs in it, or they differ from the checkpoint's"
    except (OSError, ValueError) as error:
        found, damage = None, str(error)
    if found is None or list(map(json.dumps, found)) != list(map(json.dumps, lines)):
        kept = f"; kept as {set_aside(path).name}" if path.exists() else ""
        logger.warning("%s%s; written again from the checkpoint", damage, kept)
    write_metrics(experiment, lines)


def _write_table(experiment: Path, lines: Sequence[dict]) -> None:
    """Write metrics.csv as a whole: an epoch may have columns that earlier ones lack. Without lines, remove it."""
    if not lines:
        (experiment / "metrics.csv").unlink(missing_ok=True)
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(experiment / "metrics.csv", table.getvalue())


def draw_curves(experiment: Path, metrics: Sequence[str], reference_losses: dict[str, float]) -> None:
    """Draw curves.png from metrics.jsonl: training losses, validation metrics, the learning rate, over epochs.

    reference_losses: name of a loss to that of a model that learned nothing, drawn dashed."""
    lines = read_metrics(experiment)
    if not lines:
        return
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from engine.charts import save_chart

    figure = Figure(figsize=(13, 4), layout="constrained")
    losses, scores, rate = figure.subplots(1, 3)
    epochs = [line["epoch"] for line in lines]
    marker = "o" if len(lines) < 30 else None
    keys = [key for key in lines[0] if key.startswith("train_loss_")]
    for index, key in enumerate(keys[1:] if len(keys) == 2 else keys):  # of one loss the total is the same line
        name = key.removeprefix("train_loss_")
        losses.plot(epochs, [line[key] for line in lines], label=name, color=f"C{index}", marker=marker, ms=3)
        if name in reference_losses:
            losses.axhline(
                reference_losses[name], color=f"C{index}", ls="--", lw=1, label=f"{name}, constant predictor"
            )
    scored = [line for line in lines if line.get(metrics[0]) is not None]
    for metric in metrics:
        scores.plot(
            [line["epoch"] for line in scored], [line[metric] for line in scored], label=metric, marker=marker, ms=3
        )
    rate.plot(epochs, [line["learning_rate"] for line in lines], color="C2", marker=marker, ms=3)
    for axes, title in ((losses, "training loss"), (scores, "validation score"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.set_xlim(0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(bottom=0)  # and up to what was reached: the first epochs would be a flat line on a scale up to 1
    losses.legend(fontsize=8)
    if scored:
        scores.legend(fontsize=8)
    save_chart(experiment / "curves.png", figure)
