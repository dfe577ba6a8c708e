"""Write, read and plot metrics.jsonl, which has a line per epoch and units in its key names."""

import json
from collections.abc import Sequence
from pathlib import Path

from engine.files import write_text


def write_metrics(experiment: Path, lines: Sequence[dict]) -> None:
    """Replace metrics.jsonl with the lines of all epochs so far.

    The whole file is rewritten each time, so that other changes to the file during the run are undone."""
    write_text(experiment / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def read_metrics(experiment: Path) -> list[dict]:
    """Return a dict for each epoch so far, oldest first. Raises ValueError naming the file if it is corrupt."""
    path = experiment / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(line["step"], int) for line in lines):
            raise ValueError("step is not an integer")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: corrupt, expected a JSON object with a step in each line ({error})") from None
    return lines


def draw_curves(experiment: Path, metrics: Sequence[str], reference_losses: dict[str, float]) -> None:
    """Draw curves.png from metrics.jsonl: training losses, validation metrics and learning rate by epoch.

    reference_losses: dict from loss name to the loss of a constant predictor, which is drawn as a dashed line."""
    lines = read_metrics(experiment)
    if not lines:
        return
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from engine.charts import save_chart

    figure = Figure(figsize=(13, 4), layout="constrained")
    losses, scores, rate = figure.subplots(1, 3)
    epochs = [line["epoch"] for line in lines]
    style = {"marker": "o" if len(lines) < 30 else None, "ms": 3}
    keys = [key for key in lines[0] if key.startswith("train_loss_")]
    for index, key in enumerate(keys[1:] if len(keys) == 2 else keys):  # skip the total: it equals a single loss
        name, colour = key.removeprefix("train_loss_"), f"C{index}"
        losses.plot(epochs, [line[key] for line in lines], label=name, color=colour, **style)
        if name in reference_losses:
            losses.axhline(reference_losses[name], color=colour, ls="--", lw=1, label=f"{name}, constant predictor")
    scored = [line for line in lines if line.get(metrics[0]) is not None]
    for metric in metrics:
        scores.plot([line["epoch"] for line in scored], [line[metric] for line in scored], label=metric, **style)
    rate.plot(epochs, [line["learning_rate"] for line in lines], color="C2", **style)
    for axes, title in ((losses, "training loss"), (scores, "validation score"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.set_xlim(0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(bottom=0)  # no top=1, because early scores would look flat
    losses.legend(fontsize=8)
    if scored:
        scores.legend(fontsize=8)
    save_chart(experiment / "curves.png", figure)
