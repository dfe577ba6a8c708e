"""Comparisons as tables: Markdown to read, LaTeX (booktabs) to paste into a paper, CSV for other programs."""

import argparse
import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ablation.columns import COLUMNS
from ablation.comparison import Cell, Comparison, Difference
from ablation.sentences import conclusion_of, noted_runs, seeds_of, unit_of, with_minus
from engine.terminal import printable
from stats.bootstrap import Interval

FLOPS_NOTE = (
    "GFLOPs: one forward pass of one image; matrix products, convolutions and attention, two per multiply-add. "
    "Norms, activations, resizing, softmax and post-processing are not counted."
)
INTERVAL_NOTE = (
    "In brackets: 95% intervals over the choice of validation images, and over seeds where there are several."
)


@dataclass
class Table:
    """Text in rows under a header. bold: (row, column) places; notes stand below."""

    title: str
    header: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def lines(self, text: Callable[[str], str], bold: str) -> list[list[str]]:
        """Return the rows as `text` writes each cell; bold: the format of cells that stand out."""
        return [
            [bold.format(text(value)) if (i, j) in self.bold else text(value) for j, value in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]


def as_text(comparison: Comparison, options: argparse.Namespace) -> str:
    """Return a comparison as Markdown, LaTeX or CSV. options: format, columns, per_class and errors of the command."""
    if options.format == "csv":
        return to_csv(comparison)
    tables = [score_table(comparison)]
    if options.columns:
        tables.append(column_table(comparison, options.columns))
    differences = [
        difference_table(title, family, unit_of(comparison)) for title, family in families(comparison) if family
    ]
    if differences:
        differences[0].notes.append(
            f"Paired bootstrap over {comparison.images} images, {comparison.replicates:,} resamples; "
            f"{seeds_of(comparison)} per cell. p (Holm) is corrected for the differences in one table. Detectable: a "
            "true difference that would be found significant four times out of five."
        )
    tables += differences
    if options.per_class and comparison.per_class:
        tables.append(class_table(comparison))
    if options.errors and cells_with_errors(comparison):
        tables.append(error_table(comparison))
    warnings = [f"WARNING: {warning}" for warning in comparison.warnings]
    prose = [*warnings, conclusion_of(comparison)]
    if options.format == "latex":
        tables[0].notes = [*warnings, *tables[0].notes]  # into the caption: a comment would not be printed
        head = [*prose, r"In the preamble: \usepackage{booktabs}"]
        return "\n".join([*(f"% {line}" for line in head), *map(to_latex, tables)])
    return "\n".join([f"## {comparison.title}", "", *(f"{line}\n" for line in prose), *map(to_markdown, tables)])


def families(comparison: Comparison) -> list[tuple[str, list[Difference]]]:
    """Return the differences that are looked at together, each with its title."""
    row, column = comparison.row_name, comparison.column_name
    return [
        ("Differences", comparison.differences),
        (f"What each {column} adds, mean over {row}s", comparison.column_effects),
        (f"What each {row} adds, mean over {column}s", comparison.row_effects),
        ("Interactions", comparison.interactions),
    ]


# ---- what is in them ---------------------------------------------------------------------------------------


def score_table(comparison: Comparison) -> Table:
    """Rows down, columns across: mean and spread of the score over seeds."""
    best, bold, rows = comparison.best, set(), []
    for i, row in enumerate(comparison.rows):
        cells = [comparison.cells.get((row, column)) for column in comparison.columns]
        rows.append([row, *map(shown_cell, cells)])
        bold |= {(i, j) for j, cell in enumerate(cells, start=1) if cell is not None and cell is best}
    seeds = seeds_of(comparison)
    over = "one seed" if seeds == "1 seed" else f"mean ± standard deviation over {seeds}"
    lower = ", lower is better" if comparison.lower_is_better else ""
    header = [f"{comparison.row_name} \\ {comparison.column_name}", *comparison.columns]
    return Table(f"{comparison.metric}, {over}{lower}", header, rows, bold, noted_runs(comparison, counted=False))


def shown_cell(cell: Cell | None) -> str:
    """Return '0.5531 ± 0.0042', with the kinds of its notes in brackets; '-' where nothing was asked for."""
    if cell is None:
        return "-"
    score = "" if cell.mean is None else f"{cell.mean:.4f}"
    spread = "" if cell.spread is None else f" ± {cell.spread:.4f}"
    status = status_of(cell)
    return " ".join(filter(None, [score + spread, f"({status})" if status and score else status])) or "undefined"


def status_of(cell: Cell) -> str:
    """Return the kinds of a cell's notes, 'failed, stale'; empty where all runs are done."""
    return ", ".join(sorted({note.kind for note in cell.notes}))


def recorded_columns(comparison: Comparison) -> list[str]:
    """Return the keys of COLUMNS that some cell has a number for; the others are of other tasks."""
    return [
        name
        for name, (section, key, _, _) in COLUMNS.items()
        if any(cell.mean_of(section, key) is not None for cell in comparison.filled)
    ]


def column_table(comparison: Comparison, names: Sequence[str]) -> Table:
    """Other scores and the cost of every cell, means over its seeds. names: keys of COLUMNS, or "all" of them."""
    names = recorded_columns(comparison) if "all" in names else names
    rows = [
        [cell.name, shown_cell(cell), *(shown_column(comparison, cell, name) for name in names)]
        for cell in comparison.filled
    ]
    header = ["", comparison.metric, *(COLUMNS[name][2] for name in names)]
    with_interval = comparison.intervals.get(comparison.baseline, {}).keys() & names
    notes = [INTERVAL_NOTE] * bool(with_interval) + [FLOPS_NOTE] * ("gflops" in names)
    return Table("Scores and cost", header, rows, notes=notes)


def shown_column(comparison: Comparison, cell: Cell, name: str) -> str:
    """Return what a cell has in a column of COLUMNS, with its 95% interval where one was computed."""
    section, key, _, form = COLUMNS[name]
    value, interval = cell.mean_of(section, key), comparison.intervals.get(cell.place, {}).get(key)
    if value is None:
        return "undefined"
    return shown_interval(interval, form.format) if interval else form.format(value)


def difference_table(title: str, differences: Sequence[Difference], unit: str) -> Table:
    """Estimates with their uncertainty; what is significant after Holm is bold. unit: what differences are in."""
    rows = []
    for each in differences:
        interval, numbers = each.interval, ["undefined"] * 5
        if not math.isnan(interval.low):
            detectable = each.smallest_detectable
            numbers = [
                f"{interval.low:+.4f} to {interval.high:+.4f}",
                f"{interval.p:.3f}",
                f"{each.p_holm:.3f}",
                "yes" if each.significant else "no",
                "undefined" if math.isnan(detectable) else f"{detectable:.4f}",
            ]
        rows.append([each.label, f"{interval.estimate:+.4f}", *numbers])
    bold = {(i, 1) for i, each in enumerate(differences) if each.significant}
    header = ["", f"difference in {unit}", "95% interval", "p", "p (Holm)", "significant", "detectable"]
    return Table(title, header, rows, bold)


def class_table(comparison: Comparison) -> Table:
    """The score of every class and its change against the baseline."""
    digits = 4 if comparison.lower_is_better else 3
    header, rows = ["class"], [[name] for name in comparison.per_class[comparison.baseline]]
    for cell in comparison.filled:
        header.append(cell.name)
        for row in rows:
            text = shown_interval(comparison.per_class[cell.place][row[0]], f"{{:.{digits}f}}".format)
            if cell.place != comparison.baseline:
                change = comparison.per_class_change[cell.place][row[0]]
                text += f", {shown_interval(change, f'{{:+.{digits}f}}'.format)}"
            row.append(text)
    notes = [
        f"After the comma: change against {comparison.base.name}. In brackets: 95% intervals over the choice of "
        "validation images alone, not corrected for the number of classes."
    ]
    return Table(f"{comparison.class_metric} by class", header, rows, notes=notes)


def shown_interval(interval: Interval, shown: Callable[[float], str]) -> str:
    """Return '0.553 [0.531, 0.574]'."""
    if math.isnan(interval.estimate):
        return "undefined"
    if math.isnan(interval.low):
        return shown(interval.estimate)
    return f"{shown(interval.estimate)} [{shown(interval.low)}, {shown(interval.high)}]"


def cells_with_errors(comparison: Comparison) -> list[Cell]:
    """Return the cells whose runs all recorded errors by kind."""
    return [cell for cell in comparison.filled if all(run.results.errors for run in cell.runs)]


def error_table(comparison: Comparison) -> Table:
    """What correcting each kind of error would add to AP50, and its change against the baseline."""
    cells, baseline = cells_with_errors(comparison), comparison.base
    kinds, rows = list(cells[0].runs[0].results.errors.delta_AP50), []
    for cell in cells:
        row = [cell.name]
        for kind in kinds:
            value, before = (each.mean_of("delta_AP50", kind) for each in (cell, baseline))
            change = "" if cell is baseline or None in (value, before) else f" ({value - before:+.4f})"
            row.append("undefined" if value is None else f"{value:.4f}{change}")
        rows.append(row)
    notes = [
        "AP50 that would be gained if all errors of one kind were corrected (Bolya et al. 2020, arXiv 2008.08115); in "
        f"brackets the change against {baseline.name}: below zero, fewer such errors."
    ]
    return Table("Errors by kind", ["", *kinds], rows, notes=notes)


# ---- how they are written ----------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A GitHub table with its title above and its notes below."""

    def text(value: str) -> str:
        return printable(with_minus(value)).replace("|", "\\|")

    rows = [[printable(name).replace("|", "\\|") for name in table.header], ["---"] * len(table.header)]
    rows += table.lines(text, "**{}**")
    lines = [f"### {table.title}", "", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += [""] * bool(table.notes) + [f"- {printable(note)}" for note in table.notes]
    return "\n".join(lines) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
    "[": "{[}",  # right after a line's end it would be taken for an option
}  # fmt: skip


def to_latex(table: Table) -> str:
    """A table environment for the booktabs package."""

    def text(value: str) -> str:
        escaped = "".join(LATEX.get(character, character) for character in printable(value))
        return re.sub(r"-(?=\d)", "$-$", escaped).replace(" x ", r" $\times$ ")

    header, *rows = [
        " & ".join(row) + r" \\" for row in [map(text, table.header), *table.lines(text, r"\textbf{{{}}}")]
    ]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{text('. '.join([table.title, *table.notes]))}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule", header, r"\midrule", *rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line per cell, in full precision: score, spread, difference from the baseline, every recorded column."""
    changes, lines = {difference.label: difference for difference in comparison.differences}, []
    for cell in comparison.cells.values():
        line = {comparison.row_name: cell.row, comparison.column_name: cell.column, "seeds": len(cell.scores)}
        line |= {comparison.metric: cell.mean, "spread": cell.spread, "status": status_of(cell)}
        change = changes.get(f"{cell.name} - {comparison.base.name}")
        for name in ("estimate", "low", "high", "p"):
            line[f"difference_{name}"] = change and getattr(change.interval, name)
        line |= {"difference_p_holm": change and change.p_holm}
        line |= {"smallest_detectable": change and change.smallest_detectable}
        line |= {name: cell.mean_of(*COLUMNS[name][:2]) for name in recorded_columns(comparison)}
        lines.append(line | {"warnings": " / ".join(comparison.warnings)})
    output = io.StringIO()
    writer = csv.DictWriter(output, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return output.getvalue()
