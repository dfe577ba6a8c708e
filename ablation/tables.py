"""Comparisons as tables: Markdown to read, LaTeX (booktabs) to paste into a paper, CSV for other programs."""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ablation.columns import COLUMNS
from ablation.comparison import Cell, Comparison, Difference, with_minus
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


# ---- what is in them ---------------------------------------------------------------------------------------


def score_table(comparison: Comparison) -> Table:
    """Rows down, columns across: mean and spread of the score over seeds."""
    best, bold, rows = comparison.best, set(), []
    for i, row in enumerate(comparison.rows):
        cells = [comparison.cells.get((row, column)) for column in comparison.columns]
        rows.append([row, *(shown_cell(cell) for cell in cells)])
        bold |= {(i, j) for j, cell in enumerate(cells, start=1) if cell is not None and cell is best}
    lower = ", lower is better" * comparison.lower_is_better
    over = "one seed" if comparison.seeds == "1 seed" else f"mean ± standard deviation over {comparison.seeds}"
    title = f"{comparison.metric}, {over}{lower}"
    header = [f"{comparison.row_name} \\ {comparison.column_name}", *comparison.columns]
    return Table(title, header, rows, bold, comparison.reasons(of_scored=False))


def shown_cell(cell: Cell | None) -> str:
    """'0.5531 ± 0.0042', with what is not as it should be in brackets; '-' where nothing was asked for."""
    if cell is None:
        return "-"
    score = "" if cell.mean is None else f"{cell.mean:.4f}"
    spread = "" if cell.spread is None else f" ± {cell.spread:.4f}"
    status = f"({cell.status})" if cell.status and score else cell.status
    return " ".join(filter(None, [score + spread, status])) or "undefined"


def recorded_columns(comparison: Comparison) -> list[str]:
    """The keys of COLUMNS that some cell has a number for; the others are of other tasks."""
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
    """What a cell has in a column of COLUMNS, with its 95% interval where one was computed."""
    section, key, _, form = COLUMNS[name]
    value, interval = cell.mean_of(section, key), comparison.intervals.get((cell.row, cell.column), {}).get(key)
    if value is None:
        return "undefined"
    return shown_interval(interval, form) if interval else form.format(value)


def difference_table(title: str, differences: Sequence[Difference], what: str) -> Table:
    """Estimates with their uncertainty; what is significant after Holm is bold. what: they are differences in."""
    rows = []
    for difference in differences:
        interval = difference.interval
        rows.append(
            [
                difference.label,
                f"{interval.estimate:+.4f}",
                *(
                    ["undefined"] * 5
                    if math.isnan(interval.low)
                    else [
                        f"{interval.low:+.4f} to {interval.high:+.4f}",
                        f"{interval.p:.3f}",
                        f"{difference.p_holm:.3f}",
                        "yes" if difference.significant else "no",
                        "undefined"
                        if math.isnan(difference.smallest_detectable)
                        else f"{difference.smallest_detectable:.4f}",
                    ]
                ),
            ]
        )
    bold = {(i, 1) for i, difference in enumerate(differences) if difference.significant}
    header = ["", f"difference in {what}", "95% interval", "p", "p (Holm)", "significant", "detectable"]
    return Table(title, header, rows, bold)


def class_table(comparison: Comparison) -> Table:
    """The score of every class and its change against the baseline."""
    names, digits = list(comparison.per_class[comparison.baseline]), 4 if comparison.lower_is_better else 3
    header, rows = ["class"], [[name] for name in names]
    for cell in comparison.filled:
        place = (cell.row, cell.column)
        header.append(cell.name)
        for row, name in zip(rows, names, strict=True):
            text = shown_interval(comparison.per_class[place][name], f"{{:.{digits}f}}")
            if place != comparison.baseline:
                text += f", {shown_interval(comparison.per_class_change[place][name], f'{{:+.{digits}f}}')}"
            row.append(text)
    notes = [
        f"After the comma: change against {' x '.join(comparison.baseline)}. In brackets: 95% intervals over the "
        "choice of validation images alone, not corrected for the number of classes."
    ]
    return Table(f"{comparison.class_metric} by class", header, rows, notes=notes)


def shown_interval(interval: Interval, form: str) -> str:
    """'0.553 [0.531, 0.574]'."""
    if math.isnan(interval.estimate):
        return "undefined"
    if math.isnan(interval.low):
        return form.format(interval.estimate)
    low, high = form.format(interval.low), form.format(interval.high)
    return f"{form.format(interval.estimate)} [{low}, {high}]"


def error_table(comparison: Comparison) -> Table:
    """What mending each kind of error would add to AP50, and its change against the baseline."""
    cells = [cell for cell in comparison.filled if all(run.results.errors for run in cell.runs)]
    baseline = comparison.cells[comparison.baseline]
    baseline = baseline if baseline in cells else None
    kinds = list(cells[0].runs[0].results.errors.delta_AP50) if cells else []
    rows = []
    for cell in cells:
        row = [cell.name]
        for kind in kinds:
            value, before = mean_error(cell, kind), baseline and mean_error(baseline, kind)
            change = "" if cell is baseline or None in (value, before) else f" ({value - before:+.4f})"
            row.append("undefined" if value is None else f"{value:.4f}{change}")
        rows.append(row)
    notes = [
        "AP50 that would be gained if all errors of one kind were mended (Bolya et al. 2020, arXiv 2008.08115); in "
        f"brackets the change against {' x '.join(comparison.baseline)}: below zero, fewer such errors."
    ]
    return Table("Errors by kind", ["", *kinds], rows, notes=notes)


def mean_error(cell: Cell, kind: str) -> float | None:
    """Mean over seeds of what an error costs; None where it is undefined for one."""
    values = [run.results.errors.delta_AP50[kind] for run in cell.runs]
    return None if None in values else sum(values) / len(values)


# ---- how they are written ----------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A GitHub table with its title above and its notes below."""

    def text(value: str) -> str:
        return printable(value).replace("|", "\\|")

    def cell(i: int, j: int) -> str:
        value = text(with_minus(table.rows[i][j]))
        return f"**{value}**" if (i, j) in table.bold else value

    width = len(table.header)
    lines = [f"### {table.title}", "", "| " + " | ".join(map(text, table.header)) + " |", "|" + " --- |" * width]
    lines += ["| " + " | ".join(cell(i, j) for j in range(width)) + " |" for i in range(len(table.rows))]
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

    def cell(i: int, j: int) -> str:
        value = text(table.rows[i][j])
        return rf"\textbf{{{value}}}" if (i, j) in table.bold else value

    width = len(table.header)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{text('. '.join([table.title, *table.notes]))}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(text, table.header)) + r" \\", r"\midrule"]
    lines += [" & ".join(cell(i, j) for j in range(width)) + r" \\" for i in range(len(table.rows))]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line per cell, in full precision: score, spread, difference from the baseline, every recorded column."""
    output = io.StringIO()
    lines = list(csv_lines(comparison))
    writer = csv.DictWriter(output, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return output.getvalue()


def csv_lines(comparison: Comparison) -> Iterator[dict]:
    changes = {difference.label: difference for difference in comparison.differences}
    for cell in comparison.cells.values():
        line = {comparison.row_name: cell.row, comparison.column_name: cell.column, "seeds": len(cell.scores)}
        line |= {comparison.metric: cell.mean, "spread": cell.spread, "status": cell.status}
        change = changes.get(f"{cell.name} - {' x '.join(comparison.baseline)}")
        for name in ("estimate", "low", "high", "p"):
            line[f"difference_{name}"] = getattr(change.interval, name) if change else None
        line["difference_p_holm"] = change.p_holm if change else None
        line["smallest_detectable"] = change.smallest_detectable if change else None
        line |= {name: cell.mean_of(*COLUMNS[name][:2]) for name in recorded_columns(comparison)}
        yield line | {"warnings": " / ".join(comparison.warnings)}
