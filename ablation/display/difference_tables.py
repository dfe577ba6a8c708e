"""The tables of differences: between cells, on slices, at planned looks, and what limits them."""

import math
from collections.abc import Sequence

from ablation.comparison import Cell, Comparison, Difference, SliceDifference
from ablation.display.formats import Table
from ablation.display.sentences import limits_of, seeds_of, spread_note, unit_of
from stats.planning import Variances
from stats.slices import FEW_IMAGES

IMAGE_FACTORS = (1, 2, 4)  # numbers of images in the table of detectable differences, divided by the present number


def difference_table(title: str, differences: Sequence[Difference], comparison: Comparison) -> Table:
    """Return the table of differences with corrected intervals, p values and verdicts; significant ones are bold."""
    header = ["", f"difference in {unit_of(comparison)}", "95% interval", "corrected interval", "p (Holm)", "verdict"]
    header += ["at most", "detectable"]
    with_single_runs = any(not math.isnan(each.probability_better) for each in differences)
    rows = []
    for each in differences:
        row = [
            each.label,
            shown_number(each.interval.estimate, "+.4f"),
            shown_range(each.interval.low, each.interval.high),
        ]
        row += [shown_range(*each.simultaneous), shown_p(each.p_holm, comparison, each.num_tests)]
        row += [comparison.verdict(each), shown_number(each.bound, ".4f"), shown_number(each.detectable, ".4f")]
        if with_single_runs:
            row.append(shown_number(each.probability_better, ".0%"))
        rows.append(row)
    bold = {(i, 1) for i, each in enumerate(differences) if each.is_significant and comparison.covers_seeds}
    return Table(title, header + ["single run better"] * with_single_runs, rows, bold)


def shown_number(value: float, form: str) -> str:
    """Return a number in a format such as "+.4f"; "undefined" for nan."""
    return "undefined" if math.isnan(value) else f"{value:{form}}"


def shown_range(low: float, high: float) -> str:
    """Return an interval such as "+0.0012 to +0.0034"."""
    return "undefined" if math.isnan(low) else f"{low:+.4f} to {high:+.4f}"


def shown_p(p: float, comparison: Comparison, num_tests: int = 1, replicates: int | None = None) -> str:
    """Return a p value; the lowest that the number of resamples allows is shown as a limit.

    replicates: number of resamples, if it is not that of the comparison."""
    if math.isnan(p):
        return "undefined"
    lowest = min(1.0, num_tests * 2 / ((replicates or comparison.replicates) + 1))
    digits = 3 if p >= 0.01 else 4
    is_lowest = p < 1.05 * lowest  # not exactly, because some resamples may have no score
    return f"<{max(lowest, 5e-5):.4f}" if is_lowest and lowest < comparison.level else f"{p:.{digits}f}"


def has_limits(comparison: Comparison) -> bool:
    """Return whether the variances of a comparison are known: there are several seeds and scores differ."""
    return comparison.variances is not None and comparison.variances.standard_error() > 0


def comparison_limits(comparison: Comparison) -> Table:
    """Return the table of detectable differences of a comparison, with what limits it as notes."""
    seeds = seeds_of(comparison).rpartition(" ")[0]
    table = limits_table(comparison.variances, seeds, comparison.metric)
    table.notes += [limits_of(comparison.variances), spread_note(comparison.variances)]
    return table


def limits_table(variances: Variances, seeds_now: str, metric: str, seeds: Sequence[int] = (3, 5, 10)) -> Table:
    """Return the table of detectable differences by number of seeds and of images; the present one is bold.

    seeds_now: such as '3' or '1 to 3'; empty if there is no row for it. seeds: further numbers of seeds per cell."""
    rows = {str(count): count for count in seeds}
    if seeds_now:
        rows[seeds_now] = variances.squares / variances.per_seed  # for the order of the rows
    order = sorted(rows, key=rows.get)
    counts = [None if label == seeds_now else rows[label] for label in order] + [math.inf]
    lines = [
        [label, *(shown_size(variances.detectable(count, factor)) for factor in IMAGE_FACTORS)]
        for label, count in zip([*order, "any number"], counts, strict=True)
    ]
    tests = f"{variances.tests} difference{'s' * (variances.tests > 1)} tested together"
    note = f"True difference of typical cells that would be significant in 80% of comparisons, with {tests}."
    header = ["seeds per cell", *(f"{factor * variances.images:,} images" for factor in IMAGE_FACTORS)]
    bold = {(order.index(seeds_now), 1)} if seeds_now else set()
    return Table(f"Detectable differences in {metric}, with more seeds or images", header, lines, bold, [note])


def shown_size(value: float) -> str:
    """Return the size of a difference as text; 'undefined' for nan."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.4f}" if value >= 0.001 else f"{value:.2g}"


def slice_tables(comparison: Comparison) -> list[Table]:
    """Return the tables of differences on slices: on each slice, and how they differ from those on other images."""
    tables, base = [], comparison.baseline_cell.name
    few = [f"* based on fewer than {FEW_IMAGES} images: the interval is unreliable."]
    unit = f"difference in {unit_of(comparison)}"
    test = ["corrected interval", "p (Holm)", "verdict", "at most"]
    if comparison.slices:
        objects = ["objects"] if comparison.slices[0].slice.num_objects is not None else []
        rows = [
            [slice_name(each), str(each.slice.num_images), *[str(each.slice.num_objects)] * len(objects),
             each.cell.name, f"{each.score:.4f}", *shown_test(each.difference, comparison)]
            for each in comparison.slices
        ]  # fmt: skip
        notes = [
            f"The intervals are corrected for {len(rows)} differences (Bonferroni), and the p values too (Holm). A "
            "difference that is significant in one slice only may be the same in the others: see the next table.",
            *few * any(each.is_unreliable for each in comparison.slices),
            *comparison.slice_notes,
        ]
        header = ["slice", "images", *objects, "cell", comparison.metric, unit, *test]
        shown = [i for i, each in enumerate(comparison.slices) if each.difference.is_significant]
        bold = {(i, header.index(unit)) for i in shown if comparison.covers_seeds}
        tables.append(Table(f"Differences from {base}, by slice of the validation images", header, rows, bold, notes))
    elif comparison.slice_notes:
        tables.append(Table("Differences by slice: none compared", ["slice"], [], notes=comparison.slice_notes))
    if comparison.slice_interactions:
        found = comparison.slice_interactions
        rows = [[slice_name(each), each.cell.name, *shown_test(each.difference, comparison)] for each in found]
        notes = [
            f"The difference from {base} on the slice, minus the same difference on images with other values of the "
            f"attribute. Corrected for {len(rows)} differences, like the table above.",
            *few * any(each.is_unreliable for each in found),
        ]
        bold = {(i, 2) for i, each in enumerate(found) if each.difference.is_significant and comparison.covers_seeds}
        header = ["slice", "cell", "change of the difference", *test]
        tables.append(Table("Does the difference depend on the slice?", header, rows, bold, notes))
    return tables


def slice_name(each: SliceDifference) -> str:
    """Return the name of the slice, with an asterisk if the interval is unreliable."""
    return f"{each.slice.name}{' *' * each.is_unreliable}"


def shown_test(difference: Difference, comparison: Comparison) -> list[str]:
    """Return a difference on a slice as text: estimate, and the columns of the test."""
    return [
        f"{difference.interval.estimate:+.4f}",
        shown_range(*difference.simultaneous),
        shown_p(difference.p_holm, comparison, difference.num_tests),
        comparison.verdict(difference),
        shown_number(difference.bound, ".4f"),
    ]


def slice_columns(comparison: Comparison, cell: Cell) -> dict[str, float | None]:
    """Return the columns of a cell in CSV that --slices adds; None for the baseline.

    Several for each slice, such as difference[night=yes], and for each interaction. _low and _high are the ends of the
    corrected interval."""
    columns: dict[str, float | None] = {}
    families = {"difference": comparison.slices, "interaction": comparison.slice_interactions}
    for kind, found in families.items():
        own = {each.slice.name: each.difference for each in found if each.cell is cell}
        for name in dict.fromkeys(each.slice.name for each in found):
            each = own.get(name)
            columns[f"{kind}[{name}]"] = each and each.interval.estimate
            columns[f"{kind}_low[{name}]"] = each and each.simultaneous[0]
            columns[f"{kind}_high[{name}]"] = each and each.simultaneous[1]
            columns[f"{kind}_p_holm[{name}]"] = each and each.p_holm
            columns[f"{kind}_at_most[{name}]"] = each and each.bound
    return columns


def looks_table(comparison: Comparison) -> Table:
    """Return the table of the planned looks: seeds, level, and the differences that became significant at each."""
    looks, family, rows = comparison.looks, comparison.main_family, []
    for number, seeds in enumerate(looks.planned, start=1):
        values = ["not complete", "", ""]
        if number <= looks.complete:
            shown = sum(each.at_looks.shown_at == number for each in family)
            fraction, level = looks.fractions[number - 1], looks.levels[number - 1]
            values = [f"{fraction:.2f}", f"{level:.4f}", f"{shown} of {len(family)}"]
        rows.append([f"look {number}", str(seeds), *values])
    header = ["", "seeds per cell", "information", "level", "significant at this look"]
    notes = [
        "Information: variance of a difference at the last look, divided by its variance at this look. Level: a "
        "difference is significant at this look if its p (Holm) is lower; together, the looks have at most 5% false "
        "alarms (Lan and DeMets 1983). It stays significant at later looks. Not yet shown: more seeds may decide it.",
    ]
    return Table("Planned looks", header, rows, notes=notes)
