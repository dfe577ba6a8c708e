"""The tables of a comparison, as text in Markdown, LaTeX or CSV."""

import argparse
import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ablation.comparison import Cell, Comparison, Difference
from ablation.display.columns import COLUMNS
from ablation.display.difference_tables import (
    comparison_limits,
    difference_table,
    has_limits,
    looks_table,
    slice_columns,
    slice_tables,
)
from ablation.display.formats import PREAMBLE, Table, to_latex, to_markdown
from ablation.display.latency_tables import (
    budget_warnings,
    latency_columns,
    latency_notes,
    latency_sentences,
    latency_table,
    measured,
    shown_p50,
)
from ablation.display.robustness_tables import robustness_columns, robustness_sentences, robustness_tables
from ablation.display.sentences import (
    conclusion_of,
    design_notes,
    difference_notes,
    reference_of,
    run_notes,
    seeds_of,
)
from ablation.display.tuning_tables import budget_sentences, tuning_columns, tuning_tables
from ablation.results_files import COLUMN
from records.results import Place
from stats.contrasts import Interval

FLOPS_NOTE = (
    "GFLOPs are for one forward pass on one image, with two FLOPs per multiply-add. Only matrix products, convolutions "
    "and attention are counted; norms, activations, resizing, softmax and post-processing are not."
)
INTERVAL_NOTE = (
    "In brackets: 95% intervals over the choice of validation images and, with several seeds per cell, over seeds."
)


def as_text(comparison: Comparison, options: argparse.Namespace) -> str:
    """Return a comparison as Markdown, LaTeX or CSV. options: parsed arguments of ablation.compare."""
    if options.format == "csv":
        return to_csv(comparison)
    tables = [score_table(comparison)]
    if comparison.looks:
        tables.append(looks_table(comparison))
    if any_results_files(comparison):
        tables.append(files_table(comparison))
    if comparison.recipes:
        tables.append(recipe_table(comparison))
    if options.columns:
        tables.append(column_table(comparison, options.columns))
    if comparison.latencies and comparison.latencies.budget:
        tables.append(latency_table(comparison))
    differences = [difference_table(family.title, found, comparison) for family, found in comparison.families.items()]
    if comparison.family("factor effect"):
        differences[0].notes += design_notes(comparison.design)
    if differences:
        differences[0].notes += difference_notes(comparison)
    tables += differences + slice_tables(comparison) + robustness_tables(comparison)
    if has_limits(comparison):
        tables.append(comparison_limits(comparison))
    tables += tuning_tables(comparison)
    if options.per_class and comparison.per_class:
        tables.append(class_table(comparison))
    if options.errors and cells_with_errors(comparison):
        tables.append(error_table(comparison))
    warnings = [f"WARNING: {warning}" for warning in [*budget_warnings(comparison), *comparison.warnings]]
    prose = [*sentences_of(comparison), *warnings]
    if options.format == "latex":
        tables[0].notes = [*warnings, *tables[0].notes]  # in the caption, because comments are not typeset
        head = [*prose, f"In the preamble: {PREAMBLE}"]
        return "\n".join([*(f"% {line}" for line in head), *map(to_latex, tables)])
    return "\n".join([f"## {comparison.title}", "", *(f"{line}\n" for line in prose), *map(to_markdown, tables)])


def sentences_of(comparison: Comparison) -> list[str]:
    """Return the conclusion of a comparison, and what it says about corrupted images, tuning and latency."""
    return [
        *conclusion_of(comparison),
        *robustness_sentences(comparison),
        *budget_sentences(comparison),
        *latency_sentences(comparison),
    ]


# ---- content ----------------------------------------------------------------------------------------------


def score_table(comparison: Comparison) -> Table:
    """Return the table of scores by row and column: mean ± standard deviation over seeds."""
    best, bold, rows = comparison.best, set(), []
    header, lines = score_layout(comparison)
    for i, (name, marks, places) in enumerate(lines):
        cells = [comparison.cells.get(place) for place in places]
        rows.append([name, *marks, *map(shown_cell, cells)])
        bold |= {(i, j) for j, cell in enumerate(cells, 1 + len(marks)) if cell is not None and cell is best}
    seeds = seeds_of(comparison)
    over = "one seed" if seeds == "1 seed" else f"mean ± standard deviation over {seeds}"
    lower = ", lower is better" if comparison.lower_is_better else ""
    return Table(f"{comparison.metric}, {over}{lower}", header, rows, bold, run_notes(comparison, counted=False))


def score_layout(comparison: Comparison) -> tuple[list[str], list[tuple[str, list[str], list[Place]]]]:
    """Return the header of the table of scores, and (name, marks, cells) of each line.

    A factorial design has a line per design point, with a "+" for each factor that the point has."""
    rows, columns, design = comparison.rows, comparison.columns, comparison.design
    if design is None and columns == [COLUMN]:
        return [comparison.row_name, comparison.metric], [(row, [], [(row, COLUMN)]) for row in rows]
    if design is None:
        lines = [(row, [], [(row, column) for column in columns]) for row in rows]
        return [f"{comparison.row_name} \\ {comparison.column_name}", *columns], lines
    lines = [
        (point, ["+" if factor in high else "" for factor in design.factors], [(row, point) for row in rows])
        for point, high in design.points.items()
    ]
    return ["", *map(design.label, design.factors), *rows], lines


def any_results_files(comparison: Comparison) -> bool:
    """Return whether the comparison contains the detections of other tools."""
    return any(not run.is_experiment for cell in comparison.cells.values() for run in cell.runs)


def files_table(comparison: Comparison) -> Table:
    """Return the table of results files: what each contains, and its score."""
    files = [(cell, run) for cell in comparison.cells.values() for run in cell.runs if not run.is_experiment]
    rows = []
    for cell, run in files:
        matches, checksum = run.load_statistics(), run.results.inputs[str(run.path)]
        covered = len(np.unique(matches.detection_images))
        counts = [f"{len(matches.scores):,}", f"{covered:,}"]
        rows.append([cell.name, str(run.path), f"{run.score:.4f}", *counts, checksum[:8]])
    header = ["", "file", comparison.metric, "detections", "images with detections", "checksum"]
    protocol = files[0][1].results.protocol
    note = (
        f"Scored against {protocol.annotations} ({protocol.images:,} images). Detections: at most the best 100 "
        "per class and image, as in COCO's protocol. These files do not show how the detectors were trained."
    )
    return Table("Results files", header, rows, notes=[note])


def recipe_table(comparison: Comparison) -> Table:
    """Return the table of the fields that a row, column, factor or cell changes."""
    return Table(
        "Recipes", ["", f"differs from {reference_of(comparison)} in"], [list(each) for each in comparison.recipes]
    )


def shown_cell(cell: Cell | None) -> str:
    """Return a cell's score, such as '0.5531 ± 0.0042 (stale)'; '-' if the cell is not in the comparison."""
    if cell is None:
        return "-"
    score = "" if cell.mean is None else f"{cell.mean:.4f}"
    spread = "" if cell.spread is None else f" ± {cell.spread:.4f}"
    status = status_of(cell)
    return " ".join(filter(None, [score + spread, f"({status})" if status and score else status])) or "undefined"


def status_of(cell: Cell) -> str:
    """Return the kinds of a cell's notes, such as 'failed, stale'; empty if all runs are done."""
    return ", ".join(sorted({note.kind for note in cell.notes}))


def recorded_columns(comparison: Comparison) -> list[str]:
    """Return the keys of COLUMNS that at least one cell has a value for."""
    cells = comparison.scored_cells
    return [name for name in COLUMNS if any(column_value(comparison, cell, name) is not None for cell in cells)]


def column_value(comparison: Comparison, cell: Cell, name: str) -> float | None:
    """Return a cell's value in a column of COLUMNS, as a mean over runs; None if it is unknown."""
    section, key, _, _ = COLUMNS[name]
    if section == "latency":
        latency = measured(comparison).get(cell.place)
        return latency and getattr(latency, key)
    return cell.mean_of(section, key)


def column_table(comparison: Comparison, names: Sequence[str]) -> Table:
    """Return the table of extra scores and costs, as means over seeds. names: keys of COLUMNS, or "all".

    Raises ValueError if a latency is named, and the latencies cannot be compared."""
    of_latency = [name for name in names if name != "all" and COLUMNS[name][0] == "latency"]
    if of_latency and comparison.latencies and comparison.latencies.conflict:
        comparison.latencies.check(f"--columns {of_latency[0]}")
    recorded = recorded_columns(comparison)
    is_all = "all" in names
    names = recorded if is_all else names
    if any_results_files(comparison):  # their cost is unknown
        names = [name for name in names if name in recorded or COLUMNS[name][0] not in ("cost", "latency")]
    rows = [
        [cell.name, shown_cell(cell), *(shown_column(comparison, cell, name) for name in names)]
        for cell in comparison.scored_cells
    ]
    header = ["", comparison.metric, *(COLUMNS[name][2] for name in names)]
    with_interval = comparison.intervals.get(comparison.baseline, {}).keys() & names
    notes = [INTERVAL_NOTE] * bool(with_interval) + [FLOPS_NOTE] * ("gflops" in names)
    if comparison.latencies and (is_all or of_latency) and not comparison.latencies.budget:  # else in its own table
        notes += latency_notes(comparison)
    if of_latency and not measured(comparison):
        notes.append(f"No cell has a latency; to measure them, run {comparison.latencies.command}")
    return Table("Scores and cost", header, rows, notes=notes)


def shown_column(comparison: Comparison, cell: Cell, name: str) -> str:
    """Return a cell's value in a column of COLUMNS, with its 95% interval if one was computed."""
    section, key, _, form = COLUMNS[name]
    value, interval = column_value(comparison, cell, name), comparison.intervals.get(cell.place, {}).get(key)
    if value is None:
        return "undefined" if section == "scores" else "-"  # a cost is unknown if it was not measured
    if name == "latency_p50":
        return shown_p50(measured(comparison)[cell.place])
    return shown_interval(interval, form.format) if interval else form.format(value)


def class_table(comparison: Comparison) -> Table:
    """Return the table of each class's score and its change from the baseline."""
    digits = 4 if comparison.lower_is_better else 3
    header, rows = ["class"], [[name] for name in comparison.per_class[comparison.baseline]]
    for cell in comparison.scored_cells:
        header.append(cell.name)
        for row in rows:
            text = shown_interval(comparison.per_class[cell.place][row[0]], f"{{:.{digits}f}}".format)
            if cell.place != comparison.baseline:
                change = comparison.per_class_change[cell.place][row[0]]
                text += f", {shown_interval(change, f'{{:+.{digits}f}}'.format)}"
            row.append(text)
    notes = [
        f"After the comma: change from {comparison.baseline_cell.name}. In brackets: 95% intervals, not corrected for "
        "the number of classes."
    ]
    return Table(f"{comparison.class_metric} by class", header, rows, notes=notes)


def shown_interval(interval: Interval, shown: Callable[[float], str]) -> str:
    """Return an estimate and its interval as text, such as '0.553 [0.531, 0.574]'."""
    if math.isnan(interval.estimate):
        return "undefined"
    if math.isnan(interval.low):
        return shown(interval.estimate)
    return f"{shown(interval.estimate)} [{shown(interval.low)}, {shown(interval.high)}]"


def cells_with_errors(comparison: Comparison) -> list[Cell]:
    """Return the cells whose runs all recorded errors by kind."""
    return [cell for cell in comparison.scored_cells if all(run.results.errors for run in cell.runs)]


def error_table(comparison: Comparison) -> Table:
    """Return the table of the AP50 lost to each kind of error, with changes from the baseline."""
    cells, baseline = cells_with_errors(comparison), comparison.baseline_cell
    kinds, rows = list(cells[0].runs[0].results.errors.delta_AP50), []
    for cell in cells:
        row = [cell.name]
        for kind in kinds:
            value, before = (each.mean_of("delta_AP50", kind) for each in (cell, baseline))
            change = "" if cell is baseline or None in (value, before) else f" ({value - before:+.4f})"
            row.append("undefined" if value is None else f"{value:.4f}{change}")
        rows.append(row)
    notes = [
        "AP50 that would be gained if all errors of one kind were corrected (Bolya et al. 2020, arXiv 2008.08115). In "
        f"brackets: change from {baseline.name}; if it is negative, these errors cost less AP50."
    ]
    return Table("Errors by kind", ["", *kinds], rows, notes=notes)


# ---- CSV --------------------------------------------------------------------------------------------------


def to_csv(comparison: Comparison) -> str:
    """Return a comparison as CSV. The column `kind` says what a line is.

    cell: score, difference from the baseline and all recorded columns of a cell. The kinds of Family: main effects,
    interactions, and the differences between other cells; these lines have a label and the columns of differences."""
    base = comparison.baseline_cell.name
    of_cells = {f"{cell.name} - {base}": cell for cell in comparison.cells.values()}
    changes = {of_cells[each.label].place: each for each in comparison.differences if each.label in of_cells}
    lines = [cell_line(comparison, cell, changes.get(cell.place)) for cell in comparison.cells.values()]
    lines += [
        {"kind": family.kind, "label": each.label} | difference_columns(comparison, each)
        for family, found in comparison.families.items()
        for each in found
        if each not in changes.values()
    ]
    output = io.StringIO()
    writer = csv.DictWriter(output, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return output.getvalue()


def cell_line(comparison: Comparison, cell: Cell, change: Difference | None) -> dict[str, Any]:
    """Return the columns of a cell in CSV. change: its difference from the baseline."""
    line = {"kind": "cell", "label": cell.name, comparison.row_name: cell.row}
    if comparison.column_name:
        line[comparison.column_name] = cell.column
    line["seeds"] = len(cell.scores)
    if comparison.design:
        high = comparison.design.points[cell.column]
        line |= {f"factor_{factor}": int(factor in high) for factor in comparison.design.factors}
    line |= {comparison.metric: cell.mean, "spread": cell.spread, "status": status_of(cell)}
    line |= difference_columns(comparison, change)
    if comparison.may_be_best:
        line |= {"may_be_best": int(cell.place in comparison.may_be_best)}
    shares = comparison.variances.shares if comparison.variances else [None] * 4
    line |= dict(zip(("share_images", "share_errors", "share_seeds"), shares[:3], strict=True))
    if comparison.tuning:
        line["share_tuning"] = shares[3]
    line |= tuning_columns(comparison, cell)
    line |= {name: column_value(comparison, cell, name) for name in recorded_columns(comparison)}
    line |= latency_columns(comparison, cell.place)
    line |= slice_columns(comparison, cell)
    line |= robustness_columns(comparison, cell)
    conflict = comparison.latencies.conflict if comparison.latencies else ""
    warnings = [*budget_warnings(comparison), *comparison.warnings, conflict]
    return line | {"warnings": " / ".join(filter(None, warnings))}


def difference_columns(comparison: Comparison, each: Difference | None) -> dict[str, Any]:
    """Return the columns of a difference in CSV; all empty if there is none."""
    columns = {f"difference_{name}": each and getattr(each.interval, name) for name in ("estimate", "low", "high", "p")}
    columns |= {"corrected_low": each and each.simultaneous[0], "corrected_high": each and each.simultaneous[1]}
    columns |= {"difference_p_holm": each and each.p_holm, "verdict": each and comparison.verdict(each)}
    columns |= {"at_most": each and each.bound, "detectable": each and each.detectable}
    columns |= {"single_run_better": each and each.probability_better}
    if comparison.looks:
        columns |= {"level": each and each.level, "shown_at_look": each and each.at_looks.shown_at}
    return columns
