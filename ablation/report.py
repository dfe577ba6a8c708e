"""A comparison as one self-contained HTML file for a browser: tables, plots and the same pictures side by side.

    python -m ablation.compare configs/grid_coco.yaml --format html --output grid_coco.html

It shows what the experiments' records hold, whatever their task, and leaves out a section that they have no data for.
There is no script in the file and nothing is loaded: plots (ablation/plots.py) are inline SVG, pictures data URIs.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from ablation import page, plots
from ablation.comparison import Cell, Comparison, Difference, with_minus
from ablation.page import Section
from ablation.tables import FLOPS_NOTE
from engine.files import write_text
from engine.terminal import printable
from records.experiment import commit_of
from records.results import Place
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
CLASS_PLOT_DOTS = 60  # with more of them a table reads better than the plot


def write_report(path: Path, comparison: Comparison) -> None:
    """Write the comparison to `path` as one self-contained HTML file."""
    with rc_context(plots.STYLE):
        sections = [
            scores_section(comparison),
            differences_section(comparison),
            effects_section(comparison),
            costs_section(comparison),
            curves_section(comparison),
            classes_section(comparison),
            sizes_section(comparison),
            errors_section(comparison),
            precision_section(comparison),
            confusion_section(comparison),
            samples_section(comparison),
            examples_section(comparison),
            experiments_section(comparison),
        ]
    top = "".join(map(page.warning, comparison.warnings)) + what_was_scored(comparison)
    write_text(path, page.page(comparison.title, comparison.conclusion, top, sections))


def what_was_scored(comparison: Comparison) -> str:
    """The protocol of the first run; where others have another, the warnings say so."""
    if not comparison.filled:
        return ""
    results = comparison.filled[0].runs[0].results
    facts = {"task": results.task, "score": comparison.metric, "seeds": f"{comparison.seeds} per cell"}
    if comparison.differences:
        facts["intervals"] = f"95%, from {comparison.replicates:,} resamples of the images"
    for name, value in results.protocol.model_dump(exclude_unset=True).items():
        facts[name.replace("_", " ")] = listed(value) if isinstance(value, list) else str(value)
    return page.details("What was scored, and how", page.facts(facts), is_open=True)


def listed(names: Sequence[str]) -> str:
    """How many there are, and the first ones."""
    return f"{len(names)}: {', '.join(map(printable, names[:12]))}{', ...' * (len(names) > 12)}"


# ---- scores and differences --------------------------------------------------------------------------------


def scores_section(comparison: Comparison) -> Section:
    """The table, and every other score that the task records."""
    corner = f"{comparison.row_name} \\ {comparison.column_name}"
    rows = [
        (row, [score_cell(comparison, comparison.cells.get((row, column))) for column in comparison.columns])
        for row in comparison.rows
    ]
    content = page.table(comparison.metric, [corner, *comparison.columns], rows)
    content += "".join(map(page.note, comparison.reasons(of_scored=False)))
    cells = comparison.filled
    names = dict.fromkeys(name for cell in cells for run in cell.runs for name in run.results.scores)
    names = [name for name in names if any(cell.mean_of("scores", name) is not None for cell in cells)]
    if len(names) > 1:
        rows = [(cell.name, [other_score_cell(comparison, cell, name) for name in names]) for cell in cells]
        intervals = "; below it the 95% interval, where there is one" * bool(comparison.intervals)
        summary = f"Every score, mean over seeds{intervals}"
        content += page.details(summary, page.table("every score", ["", *names], rows))
    best = "Lower is better, and the lowest" if comparison.lower_is_better else "The highest"
    how = (
        f"{comparison.metric}: mean over seeds ± standard deviation between seeds. {best} mean is bold, which "
        "does not make it better than the next one: the differences below say what can be told apart."
    )
    return Section("scores", "Scores", how, content)


def score_cell(comparison: Comparison, cell: Cell | None) -> str:
    """A place in the score table."""
    if cell is None:
        return page.cell("not asked for", kind="empty")
    notes = page.small(cell.status, "note") if cell.notes else ""
    if cell.mean is None:
        return page.cell("no score", notes, "empty")
    spread = "" if cell.spread is None else f" ± {cell.spread:.4f}"
    baseline = "baseline, " * ((cell.row, cell.column) == comparison.baseline)
    seeds = page.small(f"{baseline}{len(cell.scores)} seed{'s' * (len(cell.scores) > 1)}")
    return page.cell(f"{cell.mean:.4f}{spread}", seeds + notes, "best" if cell is comparison.best else "number")


def other_score_cell(comparison: Comparison, cell: Cell, name: str) -> str:
    """Any of a cell's scores, with its interval where one was computed."""
    interval = comparison.intervals.get((cell.row, cell.column), {}).get(name)
    known = interval and not math.isnan(interval.low)
    content = page.small(f"{number(interval.low)} to {number(interval.high)}") if known else ""
    return page.cell(number(cell.mean_of("scores", name)), content)


def differences_section(comparison: Comparison) -> Section:
    """The differences from the baseline, or of every pair."""
    title, differences = "Differences", comparison.differences
    base = comparison.cells[comparison.baseline].name
    if all(difference.label.endswith(f" - {base}") for difference in differences):
        title = f"Differences from {base}"
        differences = [replace(each, label=each.label.removesuffix(f" - {base}")) for each in differences]
    how = (
        "A dot is the estimated difference, its line the 95% interval; filled and thick where it is significant at 5% "
        "after Holm's correction for looking at several. Detectable is the true difference that these images and "
        "seeds would have shown four times out of five."
    )
    return Section("differences", title, how, difference_figure(comparison, "differences", title, differences))


def effects_section(comparison: Comparison) -> Section:
    """Main effects and interactions, of grids that are large enough to have them."""
    row, column = comparison.row_name, comparison.column_name
    families = (
        ("column-effects", f"What each {column} adds, mean over {row}s", comparison.column_effects),
        ("row-effects", f"What each {row} adds, mean over {column}s", comparison.row_effects),
        ("interactions", "Interactions", comparison.interactions),
    )
    content = "".join(
        page.heading(title) + difference_figure(comparison, name, title, family)
        for name, title, family in families
        if family
    )
    how = (
        "Averages over the grid, to be read like the differences. An interaction is how much more a "
        f"{column} adds to one {row} than to another; where its interval holds zero, none was shown."
    )
    return Section("effects", "Main effects and interactions", how, content)


def difference_figure(comparison: Comparison, name: str, title: str, differences: Sequence[Difference]) -> str:
    """A plot of differences beside their numbers."""
    if not differences:
        return ""
    looks = {comparison.cells[place].name: look for place, look in plots.looks(comparison).items()}
    shown = [place for place, difference in enumerate(differences) if difference.significant]
    caption = f"{len(shown)} of {len(differences)} significant"
    drawing = plots.draw_differences(differences, looks, comparison.difference_in)
    header = ["", "difference", "95% interval", "p", "p (Holm)", "detectable"]
    rows = [(each.label, difference_cells(each)) for each in differences]
    return page.beside(page.box(figure(drawing, name, caption, title), title), page.table(title, header, rows, shown))


def difference_cells(difference: Difference) -> list[str]:
    """The numbers of a difference."""
    interval = difference.interval
    return [
        page.cell(signed(interval.estimate)),
        page.cell(between(interval)),
        page.cell(p_value(interval.p)),
        page.cell(p_value(difference.p_holm), page.small("significant") if difference.significant else ""),
        page.cell(number(difference.smallest_detectable)),
    ]


# ---- cost and course ---------------------------------------------------------------------------------------


def costs_section(comparison: Comparison) -> Section:
    """The score against each kind of cost that two cells or more have."""
    looks = plots.looks(comparison)
    header, columns, figures = ["", comparison.metric], [], ""
    for name, (label, factor, form, more_is_better) in COSTS.items():
        costs = {cell.name: cell.mean_of("cost", name) for cell in comparison.filled}
        cells = [cell for cell in comparison.filled if costs[cell.name] is not None]
        if len(cells) > 1:
            drawing = plots.draw_costs(
                [costs[cell.name] * factor for cell in cells], cells, [looks[cell.row, cell.column] for cell in cells],
                label, comparison.metric, more_is_better, comparison.lower_is_better,
            )  # fmt: skip
            across, up = "right" if more_is_better else "left", "down" if comparison.lower_is_better else "up"
            better = f"further {across} and {up} is better"
            figures += figure(drawing, f"cost-{name}", f"{label}: {better}", f"{comparison.metric} against {label}")
        if cells:
            header.append(label)
            columns.append({cell.name: form.format(costs[cell.name] * factor) for cell in cells})
    rows = [
        (cell.name, [page.cell(text) for text in (number(cell.mean), *(each.get(cell.name, "-") for each in columns))])
        for cell in comparison.filled
    ]
    devices = sorted({run.results.cost.device or "unknown" for cell in comparison.filled for run in cell.runs})
    how = (
        "Filled points, joined by the dashed line, are the Pareto front: no other cell is both cheaper and better. "
        "Vertical lines are the spread between seeds, and neighbours on the front may differ by chance alone. "
        f"Measured on: {', '.join(devices)}."
    )
    content = ""
    if figures:
        content = legend(comparison) + page.grid(figures) + page.table("cost of each cell", header, rows)
        content += page.note(FLOPS_NOTE) if COSTS["gflops"][0] in header else ""
        if len(devices) > 1:
            content = page.warning("speed, time and memory of different devices cannot be compared") + content
    return Section("costs", f"{comparison.metric} against cost", how, content)


def curves_section(comparison: Comparison) -> Section:
    """The score and the training loss by epoch."""
    looks, figures = plots.looks(comparison), ""
    for name, label, log in (
        (comparison.metric, comparison.metric, False),
        ("train_loss_total", "training loss", True),
    ):
        if drawing := plots.draw_curves(comparison, looks, name, label, log):
            caption = f"{label}{', on a logarithmic scale,' * log} by epoch"
            figures += figure(drawing, f"curve-{name}", caption, caption)
    how = "A line with markers is the mean over a cell's seeds; the thin lines are the seeds themselves."
    content = legend(comparison) + page.grid(figures) if figures else ""
    return Section("curves", "Learning curves", how, content)


# ---- what the score is made of -----------------------------------------------------------------------------


def classes_section(comparison: Comparison) -> Section:
    """The score of each class, and its change against the baseline; where a task draws it, each cell's own chart."""
    values = class_scores(comparison)
    charts = strip_of(comparison, "class_scores.png", "score of each class")
    how = (
        "Changes are sorted and on one scale for all cells; bold is a 95% interval without zero. These intervals are "
        "about the choice of images only, and not corrected for how many there are: one in twenty would leave out "
        "zero by chance."
    )
    if not values:
        return Section("classes", "Class by class", how, "")
    names = list(next(iter(values.values())))
    header = ["class", *(comparison.cells[place].name for place in values)]
    rows = [(name, [page.cell(number(scores[name].estimate)) for scores in values.values()]) for name in names]
    table = page.table("score of each class", header, rows)
    changes = class_changes(comparison, values)
    if len(names) * len(values) > CLASS_PLOT_DOTS:
        content = page.details(f"Score of each of the {len(names)} classes", table, is_open=True) + changes
    else:
        caption = "score of each class" + ", with its 95% interval" * bool(comparison.per_class)
        drawing = plots.draw_classes(values, plots.looks(comparison), "score of the class")
        plot, folded = figure(drawing, "classes-plot", caption, caption), page.details("Score of each class", table)
        content = legend(comparison) + page.beside(plot, folded + changes)
    if charts:
        content += page.details("Each cell by itself (its first seed), with the number of objects", charts)
    return Section("classes", "Class by class", how, content)


def class_scores(comparison: Comparison) -> Mapping[Place, Mapping[str, Interval]]:
    """The score of each class by cell; without intervals, and of the classes that all cells have, where none were
    computed."""
    if comparison.per_class:
        return comparison.per_class
    scores: dict[Place, dict[str, Interval]] = {}
    for cell in comparison.filled:
        tables = [run.results.per_class for run in cell.runs]
        scores[cell.row, cell.column] = {
            name: bare(mean([next(iter(each[name].values())) for each in tables]))
            for name in tables[0]
            if all(name in each for each in tables)
        }
    common = [name for name in next(iter(scores.values()), {}) if all(name in each for each in scores.values())]
    return {place: {name: each[name] for name in common} for place, each in scores.items()} if common else {}


def class_changes(comparison: Comparison, values: Mapping[Place, Mapping[str, Interval]]) -> str:
    """A table of sorted changes for each cell but the baseline; that of the best of them is open."""
    base = values.get(comparison.baseline, {})
    changes = comparison.per_class_change or {
        place: {name: bare(scores[name].estimate - base[name].estimate) for name in base}
        for place, scores in values.items()
    }
    changes = {place: each for place, each in changes.items() if each and place != comparison.baseline}
    ends = [abs(end) for each in changes.values() for i in each.values() for end in (i.estimate, i.low, i.high)]
    reach = max((end for end in ends if end > 0), default=1.0)
    best = min(changes, key=lambda place: comparison.as_loss(comparison.cells[place].mean), default=None)
    content = ""
    for place, each in changes.items():
        order = sorted(
            each, key=lambda name: -math.inf if math.isnan(each[name].estimate) else each[name].estimate, reverse=True
        )
        shown = [at for at, name in enumerate(order) if each[name].low > 0 or each[name].high < 0]
        rows = [
            (
                name,
                [
                    page.cell(number(values[place][name].estimate)),
                    page.cell(signed(each[name].estimate)),
                    page.cell(between(each[name])),
                    page.cell("", page.span(each[name].estimate, each[name].low, each[name].high, reach)),
                ],
            )
            for name in order
        ]
        name = comparison.cells[place].name
        header = ["class", "score", "change", "95% interval", with_minus(f"from {-reach:+.2g} to {reach:+.2g}")]
        summary = name + f": {len(shown)} of {len(order)} intervals without zero" * bool(comparison.per_class_change)
        content += page.details(
            summary, page.table(f"change of each class, {name}", header, rows, shown), place == best
        )
    return page.heading(f"Change against {comparison.cells[comparison.baseline].name}") + content if content else ""


def sizes_section(comparison: Comparison) -> Section:
    """The score by the size of objects, where a task tells it."""
    cells = comparison.filled
    names = [name for name in SIZES if any(cell.mean_of("scores", name) is not None for cell in cells)]
    scores = {cell.name: {name: cell.mean_of("scores", name) for name in names} for cell in cells}
    rows = bar_rows(scores, comparison.cells[comparison.baseline].name, number, signed)
    how = "Mean over seeds, with the change against the baseline below the bar; no interval was computed for these."
    content = page.table("score by size", ["", *(SIZES[name] for name in names)], rows) if names else ""
    return Section("sizes", "By size of the objects", how, content)


def errors_section(comparison: Comparison) -> Section:
    """What goes wrong, by kind, where a task tells it: {"delta_<score>": {kind: rise}, "counts": {kind: number}}."""
    cells = [cell for cell in comparison.filled if all(run.results.errors for run in cell.runs)]
    if not cells:
        return Section("errors", "", "", "")
    score, kinds = "AP50", list(cells[0].runs[0].results.errors.delta_AP50)

    def rows_of(name: str, shown: Callable, changed: Callable) -> list[tuple[str, list[str]]]:
        values = {
            cell.name: {kind: mean([getattr(run.results.errors, name)[kind] for run in cell.runs]) for kind in kinds}
            for cell in cells
        }
        return bar_rows(values, comparison.cells[comparison.baseline].name, shown, changed)

    how = (
        f"What {score} would gain if all errors of one kind, and no others, were mended (Bolya et al. 2020, arXiv "
        "2008.08115); below the bar the change against the baseline: less is better. The gains do not add up, and no "
        "interval was computed for them."
    )
    content = page.table(f"{score} lost to errors", ["", *kinds], rows_of("delta_AP50", number, signed))
    counts = rows_of("counts", count, "{:+,.0f}".format)
    content += page.details("How many errors of each kind", page.table("number of errors", ["", *kinds], counts))
    return Section("errors", "What goes wrong", how, content)


def bar_rows(
    values: Mapping[str, Mapping[str, float | None]],
    baseline: str,
    shown: Callable[[float | None], str],
    changed: Callable[[float | None], str],
) -> list[tuple[str, list[str]]]:
    """Rows of a table with a bar for each value, all on one scale, and its change against the baseline's below.

    values: name of a cell to its values; shown, changed: how a value and a change are written."""
    largest = max((value for each in values.values() for value in each.values() if value), default=1.0)
    rows = []
    for name, each in values.items():
        cells = []
        for key, value in each.items():
            content = "" if value is None else page.bar(max(value, 0) / largest)
            before = values.get(baseline, {}).get(key)
            if name != baseline and value is not None and before is not None:
                content += page.small(with_minus(changed(value - before)))
            cells.append(page.cell(shown(value), content))
        rows.append((name + " (baseline)" * (name == baseline), cells))
    return rows


# ---- pictures and records ----------------------------------------------------------------------------------


def precision_section(comparison: Comparison) -> Section:
    """Precision by recall of detectors, of the first seed of each cell."""
    how = (
        "The share of detections that are right, as more of the objects are found; the mean over recall is the AP. "
        "Each cell is shown by its first seed; scroll sideways for more. Seeds differ too: the differences above say "
        "what can be told apart."
    )
    content = strip_of(comparison, "precision_recall.png", "precision by recall")
    return Section("precision", "Precision by recall", how, content)


def confusion_section(comparison: Comparison) -> Section:
    """What classifiers and detectors take for what, of the first seed of each cell."""
    how = (
        "A row for what it is, a column for what it is taken for; off the diagonal it was taken for another class. "
        "Detectors have one more of each: the column of what was not found, and the row of what was found where "
        "nothing is, or twice. Where there are too many classes for that, the most frequent are listed. Each cell is "
        "shown by its first seed; scroll sideways for more. Seeds differ too: the differences above say what can be "
        "told apart."
    )
    content = strip_of(comparison, "confusion.png", "confusion matrix")
    return Section("confusion", "Which classes are confused", how, content)


def samples_section(comparison: Comparison) -> Section:
    """What generators make, of the first seed of each cell."""
    how = (
        "A row for each class, from the same noise in every cell that has as many of each. Each cell is shown by its "
        "first seed; scroll sideways for more."
    )
    return Section("samples", "What they make", how, strip_of(comparison, "samples.png", "samples"))


def strip_of(comparison: Comparison, name: str, what: str) -> str:
    """A picture of the first seed of each cell, side by side; empty where none has it."""
    panels = [
        page.figure(page.picture(path, f"{what}: {cell.name}"), cell.name)
        for cell in comparison.filled
        if (path := cell.runs[0].path / name).is_file()
    ]
    return page.strip("".join(panels), f"{what}, by cell", "strip large") if panels else ""


def examples_section(comparison: Comparison) -> Section:
    """The same images side by side: the ground truth, then what the first seed of each cell made of them."""
    folders = {cell.name: cell.runs[0].path / "examples" for cell in comparison.filled}
    names = {path.stem for folder in folders.values() for path in folder.glob("*.jpg")}
    content = ""
    for name in sorted((name for name in names if not name.endswith("_truth")), key=lambda name: (len(name), name)):
        truths = [path for folder in folders.values() if (path := folder / f"{name}_truth.jpg").is_file()]
        pictures = {"ground truth": truths[0]} if truths else {}
        pictures |= {cell: path for cell, folder in folders.items() if (path := folder / f"{name}.jpg").is_file()}
        panels = [page.figure(page.picture(path, f"{name}: {cell}"), cell) for cell, path in pictures.items()]
        content += page.heading(f"Image {name}") + page.strip("".join(panels), f"image {name}, by cell")
    how = (
        "The ground truth first, then each cell (its first seed), detections of low score left out; scroll sideways "
        "for more. A few images show what kinds of errors there are, not which cell is better."
    )
    return Section("examples", "The same images side by side", how, content)


def experiments_section(comparison: Comparison) -> Section:
    """Where the numbers come from, so that they can be had again."""
    header = ["cell", "seed", comparison.metric, "experiment", "commit", "device", "started", "command"]
    rows = []
    for cell in comparison.cells.values():
        for run in cell.runs:
            start = run.starts[0]
            facts = [
                str(run.seed),
                number(run.score),
                str(run.path),
                "; ".join(dict.fromkeys(map(commit_of, run.starts))),
                f"{start['processes']} x {start['cpu'] if start['device'] == 'cpu' else start['device']}",
                start["started"].replace("T", " ")[:16] + f", {len(run.starts)} starts" * (len(run.starts) > 1),
            ]
            cells = [page.cell(fact, kind="path" if fact == str(run.path) else "text") for fact in facts]
            cells.append(page.cell(start["command"], kind="command"))
            rows.append((cell.name, cells))
    how = "Each is a directory with its whole config, log and scores; the command at that commit trains it again."
    return Section(
        "experiments", "The experiments behind it", how, page.table("experiments", header, rows) if rows else ""
    )


# ---- how things are drawn and written ----------------------------------------------------------------------


def figure(drawing: Figure, name: str, caption: str, description: str) -> str:
    return page.figure(plots.to_svg(drawing, name, f"{description}: {caption}"), caption)


def legend(comparison: Comparison) -> str:
    """What colours and markers stand for."""
    return page.legend(plots.legend(comparison))


def number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else with_minus(f"{value:+.4f}")


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def between(interval: Interval) -> str:
    """'−0.0012 to +0.0034'."""
    return "-" if math.isnan(interval.low) else f"{signed(interval.low)} to {signed(interval.high)}"


def p_value(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of numbers, None where one is undefined."""
    return None if None in values else statistics.fmean(values)


def bare(estimate: float | None) -> Interval:
    """An estimate without an interval."""
    return Interval(math.nan if estimate is None else estimate, math.nan, math.nan, math.nan, math.nan)
