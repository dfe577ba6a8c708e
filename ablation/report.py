"""A comparison as one self-contained HTML file for a browser: tables, plots and the same pictures side by side.

    python -m ablation.compare configs/grid_coco.yaml --format html --output grid_coco.html

The page is ablation/report.html.jinja; this module computes what it shows. A section without data is left out. Nothing
is loaded: plots (ablation/plots.py) are inline SVG, pictures data URIs.
"""

import base64
import math
import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context

from ablation import plots
from ablation.comparison import Cell, Comparison, Difference, best_of
from ablation.sentences import conclusion_of, noted_runs, seeds_of, unit_of, with_minus
from ablation.tables import FLOPS_NOTE, cells_with_errors, families, status_of
from engine.files import write_text
from engine.terminal import printable
from records.experiment import commit_of
from stats.bootstrap import Interval

# Name in a run's cost -> what a reader calls it, by what to multiply it, how it is written, whether more is better.
COSTS = {
    "parameters": ("parameters (millions)", 1e-6, "{:.2f}", False),
    "gflops": ("GFLOPs per image", 1, "{:.2f}", False),
    "images_per_second": ("training speed (images/s)", 1, "{:.0f}", True),
    "device_hours": ("training (device-hours)", 1, "{:.2f}", False),
    "peak_memory_mib": ("peak memory (MiB)", 1, "{:,.0f}", False),
}
SIZES = {"AP_small": "small", "AP_medium": "medium", "AP_large": "large"}


def write_report(path: Path, comparison: Comparison) -> None:
    """Write the comparison to `path` as one self-contained HTML file."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, finalize=without_controls,
    )  # fmt: skip
    pages.filters |= {
        "number": number, "signed": signed, "between": between, "p_value": p_value, "defined": is_defined,
        "breakable": breakable, "data_uri": data_uri, "largest": largest, "status": status_of, "commit": commit_of,
        "without_zero": without_zero,
    }  # fmt: skip
    with rc_context(plots.STYLE):
        write_text(path, pages.get_template("report.html.jinja").render(contents(comparison)).lstrip())


def contents(comparison: Comparison) -> dict[str, Any]:
    """Return all that the template shows, by the names that it has there."""
    cells = comparison.filled
    score_names = dict.fromkeys(name for cell in cells for run in cell.runs for name in run.results.scores)
    known = [name for name in score_names if any(cell.mean_of("scores", name) is not None for cell in cells)]
    errors = cells_with_errors(comparison)
    kinds = {kind: kind for kind in errors[0].runs[0].results.errors.delta_AP50} if errors else {}
    return {
        "c": comparison,
        "conclusion": conclusion_of(comparison),
        "missing": noted_runs(comparison, counted=False),
        "facts": protocol_facts(comparison),
        "looks": plots.legend(comparison),
        "signs": plots.SIGNS,
        "score_names": known,
        **differences(comparison),
        "costs": costs(comparison),
        "devices": sorted({run.results.cost.device or "unknown" for cell in cells for run in cell.runs}),
        "flops_note": FLOPS_NOTE,
        "curves": curves(comparison),
        **classes(comparison),
        "sizes": means(cells, "scores", {name: shown for name, shown in SIZES.items() if name in known}),
        "errors": means(errors, "delta_AP50", kinds),
        "error_counts": means(errors, "counts", kinds),
        "pictures": lambda name: pictures(comparison, name),
        "examples": examples(comparison),
        "runs": [(cell, run) for cell in comparison.cells.values() for run in cell.runs],
        "number": number,
        "signed": signed,
        "count": lambda value: "-" if value is None else f"{value:,.0f}",
        "signed_count": lambda value: with_minus(f"{value:+,.0f}"),
    }


def protocol_facts(comparison: Comparison) -> dict[str, str]:
    """Return the protocol of the first run; if others differ, the warnings say so."""
    if not comparison.filled:
        return {}
    results = comparison.filled[0].runs[0].results
    facts = {"task": results.task, "score": comparison.metric, "seeds": f"{seeds_of(comparison)} per cell"}
    if comparison.differences:
        facts["intervals"] = f"95%, from {comparison.replicates:,} resamples of the images"
    for name, value in results.protocol.model_dump(exclude_unset=True).items():
        if isinstance(value, list):
            value = f"{len(value)}: {', '.join(value[:12])}{', ...' * (len(value) > 12)}"
        facts[name.replace("_", " ")] = str(value)
    return facts


def differences(comparison: Comparison) -> dict[str, Any]:
    """Return the differences with their title, the effects, and a function that draws a family of them."""
    looks = {comparison.cells[place].name: look for place, look in plots.looks(comparison).items()}
    (title, shown), *effects = families(comparison)
    suffix = f" - {comparison.base.name}"
    if all(difference.label.endswith(suffix) for difference in shown):
        title += f" from {comparison.base.name}"
        shown = [replace(each, label=each.label.removesuffix(suffix)) for each in shown]

    def draw(name: str, description: str, family: Sequence[Difference]) -> Markup:
        return plots.to_svg(plots.draw_differences(family, looks, unit_of(comparison)), name, description)

    return {
        "differences_title": title,
        "shown_differences": shown,
        "effects": [(title, family) for title, family in effects if family],
        "draw_differences": draw,
    }


def costs(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each kind of cost that some cell has: how each cell's is written, and a plot if two cells have it."""
    columns = []
    for name, (label, factor, form, more_is_better) in COSTS.items():
        found = {cell.place: cell.mean_of("cost", name) for cell in comparison.filled}
        found = {place: cost * factor for place, cost in found.items() if cost is not None}
        across, up = "right" if more_is_better else "left", "down" if comparison.lower_is_better else "up"
        caption, drawing = f"{label}: further {across} and {up} is better", None
        if len(found) > 1:
            drawing = plots.draw_costs(comparison, found, label, more_is_better)
            drawing = plots.to_svg(drawing, f"cost-{name}", f"{comparison.metric} against {label}: {caption}")
        if found:
            shown = {place: form.format(cost) for place, cost in found.items()}
            columns.append({"name": name, "label": label, "shown": shown, "drawing": drawing, "caption": caption})
    return columns


def curves(comparison: Comparison) -> dict[str, Markup]:
    """Return the score and the training loss by epoch, caption to drawing."""
    drawings = {}
    for name, label in ((comparison.metric, comparison.metric), ("train_loss_total", "training loss")):
        log = name == "train_loss_total"
        drawing = plots.draw_curves(comparison, name, label, log)
        if drawing:
            caption = f"{label}{', on a logarithmic scale,' * log} by epoch"
            drawings[caption] = plots.to_svg(drawing, f"curve-{name}", caption)
    return drawings


# ---- what the score is made of -----------------------------------------------------------------------------


def classes(comparison: Comparison) -> dict[str, Any]:
    """Return the changes of each class by cell, sorted, and the scale that all are drawn to."""
    changes = {
        place: dict(sorted(each.items(), key=falling))
        for place, each in comparison.per_class_change.items()
        if place != comparison.baseline
    }
    ends = [abs(end) for each in changes.values() for i in each.values() for end in (i.estimate, i.low, i.high)]
    reach = max((end for end in ends if end > 0), default=1.0)
    return {
        "changes": changes,
        "best_changed": best_of([comparison.cells[place] for place in changes], comparison.lower_is_better),
        "reach": reach,
        "scale": with_minus(f"from {-reach:+.2g} to {reach:+.2g}"),
    }


def falling(item: tuple[str, Interval]) -> float:
    """Sort key of changes by class: the largest rise first, undefined ones last."""
    return math.inf if math.isnan(item[1].estimate) else -item[1].estimate


def without_zero(changes: Mapping[str, Interval]) -> list[str]:
    """Return the names of changes whose interval does not hold zero."""
    return [name for name, change in changes.items() if change.low > 0 or change.high < 0]


def means(cells: Sequence[Cell], section: str, columns: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Return means over seeds: name of a cell to column to value. columns: name in the section to heading."""
    if not columns:
        return {}
    return {cell.name: {shown: cell.mean_of(section, name) for name, shown in columns.items()} for cell in cells}


# ---- pictures ----------------------------------------------------------------------------------------------


def pictures(comparison: Comparison, name: str) -> dict[str, Path]:
    """Return a picture of the first seed of each cell that has it, by the cell's name."""
    files = {cell.name: cell.runs[0].path / name for cell in comparison.filled}
    return {cell: path for cell, path in files.items() if path.is_file()}


def examples(comparison: Comparison) -> dict[str, dict[str, Path]]:
    """Return pictures of the same images: image to caption to file, the ground truth first."""
    folders = [cell.runs[0].path / "examples" for cell in comparison.filled]
    names = {path.stem for folder in folders for path in folder.glob("*.jpg") if not path.stem.endswith("_truth")}
    found = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        truths = [path for folder in folders if (path := folder / f"{name}_truth.jpg").is_file()]
        found[name] = {"ground truth": truths[0]} if truths else {}
        found[name] |= pictures(comparison, f"examples/{name}.jpg")
    return found


def data_uri(path: Path) -> str:
    """Return a JPEG or PNG file as an address that holds it."""
    kind, _ = mimetypes.guess_type(path)
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


# ---- how it is written -------------------------------------------------------------------------------------


def without_controls(value: object) -> object:
    """Return a text with its control characters, which neither HTML nor XML may hold, written as `\\x1b`."""
    return value if isinstance(value, Markup) else printable(str(value))


def breakable(text: str) -> Markup:
    """Return a name such as ResNet50Backbone_B so that it may be broken where a word in it ends, unless it is short."""
    breaks = r"(?<=_)(?=\w\w)|(?<=\w{5})(?:(?<=[a-z0-9])|(?<=[a-z][A-Z]))(?=[A-Z][a-z]{3})"
    return Markup(re.sub(breaks, "<wbr/>", escape(printable(text))))


def largest(values: Mapping[str, Mapping[str, float | None]]) -> float:
    """Return the largest value of a table, to scale its bars by; 1 if none is above 0."""
    return max((value for each in values.values() for value in each.values() if value and value > 0), default=1.0)


def is_defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    return f"{value:.4f}" if is_defined(value) else "-"


def signed(value: float | None) -> str:
    return with_minus(f"{value:+.4f}") if is_defined(value) else "-"


def between(interval: Interval) -> str:
    """Return '−0.0012 to +0.0034'."""
    return f"{signed(interval.low)} to {signed(interval.high)}" if is_defined(interval.low) else "-"


def p_value(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"
