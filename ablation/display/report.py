"""Write a comparison as one self-contained HTML file: tables, plots, and example images side by side.

    python -m ablation.compare configs/grid_coco.yaml --format html --output grid_coco.html

This module computes the data that the template report.html.jinja shows. Sections without data are omitted. The page
loads no other files: plots (plots.py) are inline SVG, and pictures are data URIs.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context

from ablation.comparison import Cell, Comparison, Difference
from ablation.display import plots
from ablation.display.difference_tables import (
    comparison_limits,
    difference_table,
    has_limits,
    looks_table,
    slice_name,
    slice_tables,
)
from ablation.display.disagreements import find_disagreements
from ablation.display.formats import Table
from ablation.display.latency_tables import budget_warnings, front_sentence, latency_table
from ablation.display.methods import facts_of, recipe_table
from ablation.display.pictures import cells_that_fit, data_uri, pictures_of
from ablation.display.robustness_tables import robustness_tables
from ablation.display.sentences import (
    design_notes,
    difference_notes,
    question_of,
    reference_of,
    run_notes,
    with_minus,
)
from ablation.display.tables import (
    FLOPS_NOTE,
    any_results_files,
    cells_with_errors,
    class_table,
    files_table,
    score_layout,
    sentences_of,
    status_of,
)
from ablation.display.tuning_tables import tuning_tables
from engine.files import write_text
from engine.terminal import printable
from records.experiment import commit_of
from stats.contrasts import Interval

# Key in the cost section of results.json -> (label, factor to the unit in the label, format, is higher better).
COSTS = {
    "parameters": ("parameters (millions)", 1e-6, "{:.2f}", False),
    "gflops": ("GFLOPs per image", 1, "{:.2f}", False),
    "images_per_second": ("training speed (images/s)", 1, "{:.0f}", True),
    "device_hours": ("training (device-hours)", 1, "{:.2f}", False),
    "peak_memory_mib": ("peak memory (MiB)", 1, "{:,.0f}", False),
}
MAX_BYTES = 3_000_000  # of the page; the pictures of the least prominent cells are left out
RESERVE = 10_000  # bytes for the text of sections that have pictures only
OPEN_CLASSES = 10  # the other classes are hidden until they are opened
CLASS_CELLS = 4  # cells whose classes have bars
SIZES = {"AP_small": "small", "AP_medium": "medium", "AP_large": "large"}


def write_report(path: Path, comparison: Comparison) -> None:
    """Write the comparison to `path` as one self-contained HTML file."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, finalize=escape_controls,
    )  # fmt: skip
    pages.filters |= {
        "number": number, "signed": signed, "between": between, "defined": is_defined, "percent": percent,
        "breakable": breakable, "data_uri": data_uri, "largest": largest, "status": status_of, "commit": commit_of,
        "excludes_zero": excludes_zero, "themed": plots.themed, "labelled": labelled, "minus": with_minus,
    }  # fmt: skip
    template = pages.get_template("report.html.jinja")
    with rc_context(plots.RC_PARAMS):
        values = contents(comparison)
    bare = template.render(values | pictures_of(comparison, []))
    cells = cells_that_fit(prominent(comparison), MAX_BYTES - RESERVE - len(bare.encode()))
    write_text(path, template.render(values | pictures_of(comparison, cells)).lstrip())


def contents(comparison: Comparison) -> dict[str, Any]:
    """Return the variables of the template as a dict."""
    cells = comparison.scored_cells
    score_names = dict.fromkeys(name for cell in cells for run in cell.runs for name in run.results.scores)
    known = [name for name in score_names if any(cell.mean_of("scores", name) is not None for cell in cells)]
    errors = cells_with_errors(comparison)
    score_header, score_lines = score_layout(comparison)
    kinds = {kind: kind for kind in errors[0].runs[0].results.errors.delta_AP50} if errors else {}
    return {
        "c": comparison,
        "question": question_of(comparison),
        "conclusion": sentences_of(comparison),
        "warnings": [*budget_warnings(comparison), *comparison.warnings],
        "missing": run_notes(comparison, counted=False),
        "facts": facts_of(comparison),
        "recipe": recipe_table(comparison),
        "styles": plots.legend(comparison),
        "signs": plots.MARKER_SIGNS,
        "score_header": score_header,
        "score_lines": score_lines,
        "score_names": known,
        "reference": reference_of(comparison),
        "looks": looks_table(comparison) if comparison.looks else None,
        **differences(comparison),
        "limits": comparison_limits(comparison) if has_limits(comparison) else None,
        **slices(comparison),
        "robustness": robustness_tables(comparison),
        **tuning(comparison),
        "costs": costs(comparison),
        "devices": sorted(
            {run.results.cost.device or "unknown" for cell in cells for run in cell.runs if run.is_experiment}
        ),
        "flops_note": FLOPS_NOTE,
        **latencies(comparison),
        "curves": curves(comparison),
        **classes(comparison),
        "sizes": means(cells, "scores", {name: shown for name, shown in SIZES.items() if name in known}),
        "errors": means(errors, "delta_AP50", kinds),
        "error_counts": means(errors, "counts", kinds),
        **disagreements(comparison),
        "runs": [(cell, run) for cell in comparison.cells.values() for run in cell.runs if run.is_experiment],
        "files": files_table(comparison) if any_results_files(comparison) else None,
        "is_detection": bool(cells) and cells[0].runs[0].results.task == "detection",
        "number": number,
        "signed": signed,
        "count": lambda value: "-" if value is None else f"{value:,.0f}",
        "signed_count": lambda value: with_minus(f"{value:+,.0f}"),
    }


def differences(comparison: Comparison) -> dict[str, Any]:
    """Return the template's variables for differences and effects: a table and a plot each, all plots on one scale."""
    styles = {comparison.cells[place].name: style for place, style in plots.cell_styles(comparison).items()}
    shown = comparison.differences
    effects = [(family.title, found) for family, found in comparison.families.items() if family.kind != "difference"]
    title, suffix = "Differences", f" - {comparison.baseline_cell.name}"
    if all(difference.label.endswith(suffix) for difference in shown):
        title += f" from {comparison.baseline_cell.name}"
        shown = [replace(each, label=each.label.removesuffix(suffix)) for each in shown]
    drawn = [each for family in (shown, *(found for _, found in effects)) for each in family]
    ends = [end for each in drawn for end in each.simultaneous if math.isfinite(end)] + [0.0]

    def part(name: str, title: str, family: Sequence[Difference]) -> dict[str, Any]:
        counts = Counter(map(comparison.verdict, family))
        caption = ", ".join(f"{count} of {len(family)} {verdict}" for verdict, count in counts.items())
        caption += "; thick: 95% interval, thin: corrected interval, filled: significant"
        caption += "; shaded: smaller than the margin" * (comparison.margin is not None)
        drawing = plots.draw_differences(family, styles, comparison, (min(ends), max(ends)))
        svg = plots.to_svg(drawing, name, f"{title}: {caption}")
        return {"table": difference_table(title, family, comparison), "drawing": svg, "caption": caption}

    return {
        "main_differences": part("differences", title, shown) if shown else None,
        "difference_notes": difference_notes(comparison) if shown else [],
        "effects": [part(f"effects-{number}", *each) for number, each in enumerate(effects, start=1)],
        "design_notes": design_notes(comparison.design) if comparison.family("factor effect") else [],
    }


def slices(comparison: Comparison) -> dict[str, Any]:
    """Return the template's variables for slices: their tables, and a plot for each cell, all on one scale."""
    styles, base, drawings = plots.cell_styles(comparison), comparison.baseline_cell.name, {}
    ends = [end for each in comparison.slices for end in each.difference.simultaneous if math.isfinite(end)] + [0.0]
    for number, cell in enumerate(comparison.scored_cells):
        own = [replace(each.difference, label=slice_name(each)) for each in comparison.slices if each.cell is cell]
        if own:
            style = dict.fromkeys((each.label for each in own), styles[cell.place])
            caption = f"{cell.name} minus {base}, by slice"
            drawing = plots.draw_differences(own, style, comparison, (min(ends), max(ends)))
            drawings[caption] = plots.to_svg(drawing, f"slices-{number}", caption)
    return {"slice_tables": slice_tables(comparison), "slice_drawings": drawings}


def tuning(comparison: Comparison) -> dict[str, Any]:
    """Return the template's variables for the tuning: its tables, and the plot of the budget curves with its legend."""
    found, drawing, styles = comparison.tuning, None, {}
    if found and found.curves:
        # Rows have no style of their own: they get those of the first cells.
        looks = zip(itertools.cycle(plots.COLOURS), itertools.cycle(plots.MARKERS), strict=False)
        styles = {owner.name: plots.CellStyle(*look) for owner, look in zip(found.owners, looks, strict=False)}
        if found.config.per == "cell":
            styles = {comparison.cells[place].name: style for place, style in plots.cell_styles(comparison).items()}
        drawing = plots.to_svg(plots.draw_budget(found, styles), "budget", "expected best score by number of trials")
    return {"tuning_tables": tuning_tables(comparison), "budget_drawing": drawing, "budget_styles": styles}


def costs(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a dict for each recorded kind of cost: the values by cell as text, and a plot if there are several."""
    columns = []
    for name, (label, factor, form, more_is_better) in COSTS.items():
        found = {cell.place: cell.mean_of("cost", name) for cell in comparison.scored_cells}
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


def latencies(comparison: Comparison) -> dict[str, Any]:
    """Return the template's variables for latency: the reason why there are none, or the table and the plot."""
    found, variables = comparison.latencies, {"latency_warning": "", "latencies": None}
    if found and found.conflict:
        variables["latency_warning"] = found.conflict
    elif found and found.cells:
        table = latency_table(comparison)
        drawing = plots.to_svg(plots.draw_latency(comparison), "latency", table.title)
        variables["latencies"] = {"table": table, "drawing": drawing, "front": front_sentence(comparison)}
    return variables


def curves(comparison: Comparison) -> dict[str, Markup]:
    """Return a dict from caption to plot: the score and the training loss by epoch."""
    drawings = {}
    for name, label in ((comparison.metric, comparison.metric), ("train_loss_total", "training loss")):
        log = name == "train_loss_total"
        drawing = plots.draw_curves(comparison, name, label, log)
        if drawing:
            caption = f"{label}{', on a logarithmic scale,' * log} by epoch"
            drawings[caption] = plots.to_svg(drawing, f"curve-{name}", caption)
    return drawings


# ---- parts of the score ------------------------------------------------------------------------------------


def prominent(comparison: Comparison) -> list[Cell]:
    """Return the scored cells: the baseline, then the best, the second best and so on."""
    base, sign = comparison.baseline_cell, 1 if comparison.lower_is_better else -1
    return sorted(comparison.scored_cells, key=lambda cell: (cell is not base, sign * cell.mean))


def classes(comparison: Comparison) -> dict[str, Any]:
    """Return the template's variables for classes: the classes, those that changed most first, and the cells shown."""
    if not comparison.per_class:
        return {}
    chosen = prominent(comparison)[:CLASS_CELLS]
    cells = [cell for cell in comparison.scored_cells if cell in chosen]
    changes = [comparison.per_class_change[cell.place] for cell in cells if cell is not comparison.baseline_cell]

    def largest_change(name: str) -> float:
        sizes = [abs(each[name].estimate) for each in changes]
        return max((size for size in sizes if not math.isnan(size)), default=-1)

    names = sorted(comparison.per_class[comparison.baseline], key=largest_change, reverse=True)
    scores = [score for cell in cells for score in comparison.per_class[cell.place].values()]
    ends = [end for score in scores for end in (score.estimate, score.high)]
    text = f"{comparison.class_metric} of each class, with its 95% interval."
    if changes:
        text += (
            f" The classes that changed most are first. Below the bar: change from {comparison.baseline_cell.name}, "
            "bold if its 95% interval excludes zero. These intervals are not corrected for the number of classes: if "
            "nothing changed, about one in twenty would exclude zero by chance."
        )
        for cell in chosen[1:2]:
            each = comparison.per_class_change[cell.place].values()
            text += f" {cell.name}: {sum(map(excludes_zero, each))} of {len(each)} exclude zero."
    return {
        "class_text": text, "class_names": names, "class_cells": cells, "num_open": OPEN_CLASSES,
        "class_scale": max((end for end in ends if end > 0), default=1.0),
        "class_table": tall(class_table(comparison)),
    }  # fmt: skip


def tall(table: Table) -> Table:
    """Return a table with rows and columns swapped if it has more columns than rows, for phones and paper."""
    if len(table.header) <= len(table.rows):
        return table
    header, *rows = zip(table.header, *table.rows, strict=True)
    return replace(table, header=["", *header[1:]], rows=list(map(list, rows)))


def excludes_zero(change: Interval) -> bool:
    return change.low > 0 or change.high < 0


def means(cells: Sequence[Cell], section: str, columns: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Return means over seeds as {cell name: {heading: mean}}. columns: dict from name in the section to heading."""
    if not columns:
        return {}
    return {cell.name: {shown: cell.mean_of(section, name) for name, shown in columns.items()} for cell in cells}


def disagreements(comparison: Comparison) -> dict[str, Any]:
    """Return the template's variables for the images on which two cells disagree most."""
    found = find_disagreements(comparison)
    if found is None:
        return {"disagreements": None}
    first, second, count = found.first.name, found.second.name, found.num_higher + found.num_lower + found.num_equal
    text = (
        f"Of {count} images with objects, {first} has the higher AP on {found.num_higher}, {second} on "
        f"{found.num_lower}, and both are equal on {found.num_equal}. The AP of an image is computed from this "
        "image alone, as a mean over IoU thresholds, the classes in the image, and seeds. "
    )
    if found.images:
        text += (
            f"The largest changes are first; the number after the file name is the AP of {first} minus that of "
            f"{second}. Each picture shows as many of a run's best detections as there are objects. These images were "
            "chosen because they are extreme: they show what kinds of errors occur, not which cell is better."
        )
    return {"disagreements": found, "disagreement_text": text}


# ---- text --------------------------------------------------------------------------------------------------


def escape_controls(value: object) -> object:
    """Return a value as text, with control characters (invalid in HTML and XML) escaped."""
    return value if isinstance(value, Markup) else printable(str(value))


def labelled(rows: Markup, header: Sequence[str]) -> Markup:
    """Return rows of a table with the column's name as data-label of each cell, for narrow screens.

    The first column of a table of rows and columns is labelled with what the rows are."""
    body = ElementTree.fromstring(f"<tbody>{rows}</tbody>")
    for row in body:
        for cell, name in zip(row, header, strict=True):
            cell.set("data-label", printable(name.partition(" \\ ")[0]))
    return Markup("".join(ElementTree.tostring(row, encoding="unicode", short_empty_elements=False) for row in body))


def breakable(text: str) -> Markup:
    """Return a name as HTML with optional line breaks (<wbr/>) between its words, such as ResNet50 and Backbone_B."""
    breaks = r"(?<=_)(?=\w\w)|(?<=\w{5})(?:(?<=[a-z0-9])|(?<=[a-z][A-Z]))(?=[A-Z][a-z]{3})"
    return Markup(re.sub(breaks, "<wbr/>", escape(printable(text))))


def largest(values: Mapping[str, Mapping[str, float | None]]) -> float:
    """Return the largest value of a table of bars, which sets the scale of the bars; 1 if no value is positive."""
    return max((value for each in values.values() for value in each.values() if value and value > 0), default=1.0)


def is_defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    return f"{value:.4f}" if is_defined(value) else "-"


def signed(value: float | None) -> str:
    return with_minus(f"{value:+.4f}") if is_defined(value) else "-"


def percent(value: float, largest: float) -> str:
    """Return a value as a share of the largest value, for a style; at least 0%."""
    return f"{100 * max(value, 0) / largest:.1f}%"


def between(interval: Interval) -> str:
    """Return an interval as text: '−0.0012 to +0.0034'."""
    return f"{signed(interval.low)} to {signed(interval.high)}" if is_defined(interval.low) else "-"
