"""Families of a comparison: which differences, main effects and interactions are tested together, and their names.

This is the only list of the families. All other modules loop over `Comparison.families`.
"""

from collections.abc import Sequence
from itertools import combinations, product

from ablation.comparison import Comparison, Family, cell_name
from engine.text import listed
from records.results import Place
from stats.contrasts import Contrast, mean_difference
from stats.factorial import Design

Contrasts = dict[str, Contrast]  # by label


def families_of(comparison: Comparison, pairs: bool) -> dict[Family, Contrasts]:
    """Return the contrasts of all families, in the order of display. pairs: compare all pairs of cells.

    Adds a warning if incomplete rows are left out of the main effects."""
    places, columns = [cell.place for cell in comparison.scored_cells], comparison.columns
    differences = {
        Family("difference", "Differences", "differences"): cell_contrasts(places, comparison.baseline, pairs)
    }
    complete = [row for row in comparison.rows if all((row, column) in places for column in columns)]
    if comparison.design:
        return factor_families(comparison, complete) | row_effects(comparison, complete) | differences
    if len(complete) < 2 or len(columns) < 2:
        return differences
    if len(complete) < len(comparison.rows):
        comparison.warnings.append(f"main effects and interactions use the complete rows only: {', '.join(complete)}")
    effects = column_effects(comparison, complete) | row_effects(comparison, complete)
    return differences | effects | interactions(comparison, complete)


def cell_contrasts(places: Sequence[Place], baseline: Place, pairs: bool) -> Contrasts:
    """Return {label: difference} of each cell from the baseline, or of all pairs of cells."""
    places = [baseline, *(place for place in places if place != baseline)]
    chosen = combinations(places, 2) if pairs else ((baseline, place) for place in places[1:])
    return {f"{cell_name(one)} - {cell_name(zero)}": mean_difference([one], [zero]) for zero, one in chosen}


def reference_row(comparison: Comparison, rows: Sequence[str]) -> str:
    """Return the row that effects of rows are measured from: the baseline's if it is complete. rows: the complete."""
    return comparison.baseline[0] if comparison.baseline[0] in rows else rows[0]


def row_effects(comparison: Comparison, rows: Sequence[str]) -> dict[Family, Contrasts]:
    """Return the main effects of the rows; none if only one row is complete. rows: the complete rows."""
    if len(rows) < 2:
        return {}
    name, first = comparison.row_name, reference_row(comparison, rows)
    over = "the design" if comparison.design else f"{comparison.column_name}s"
    plural = "" if comparison.design else f"effects of the {name}, averaged over {over}"
    cells = {row: [(row, column) for column in comparison.columns] for row in rows}
    contrasts = {f"{row} - {first}": mean_difference(cells[row], cells[first]) for row in rows if row != first}
    return {Family("row effect", f"Main effects of {name}, averaged over {over}", plural): contrasts}


def column_effects(comparison: Comparison, rows: Sequence[str]) -> dict[Family, Contrasts]:
    """Return the main effects of the columns. rows: the complete rows."""
    name, first = comparison.column_name, comparison.baseline[1]
    over = f"averaged over {comparison.row_name}s"
    cells = {column: [(row, column) for row in rows] for column in comparison.columns}
    contrasts = {
        f"{column} - {first}": mean_difference(cells[column], cells[first]) for column in cells if column != first
    }
    return {Family("column effect", f"Main effects of {name}, {over}", f"effects of the {name}, {over}"): contrasts}


def interactions(comparison: Comparison, rows: Sequence[str]) -> dict[Family, Contrasts]:
    """Return how the differences between columns change with the row. rows: the complete rows."""
    row0, column0 = reference_row(comparison, rows), comparison.baseline[1]
    contrasts = {
        f"({column} - {column0}) on {row} - ({column} - {column0}) on {row0}": {
            (row, column): 1, (row, column0): -1, (row0, column): -1, (row0, column0): 1,
        }
        for row, column in product(rows, comparison.columns) if row != row0 and column != column0
    }  # fmt: skip
    return {Family("interaction", "Interactions", "interactions"): contrasts}


# ---- factorial designs -------------------------------------------------------------------------------------


def factor_families(comparison: Comparison, rows: Sequence[str]) -> dict[Family, Contrasts]:
    """Return the main effects of the factors: averaged over rows, in each row, and how they differ between rows.

    rows: the complete rows; the other rows are left out, with a warning."""
    scored, name = [cell.place for cell in comparison.scored_cells], comparison.row_name
    missing = [cell_name(place) for place in product(comparison.rows, comparison.columns) if place not in scored]
    if missing:
        result = f"estimated from the complete rows only ({', '.join(rows)})" if rows else "not estimated"
        comparison.warnings.append(f"main effects: {result}, because they need all cells; missing: {listed(missing)}")
    if not rows:
        return {}
    over = f", averaged over {name}s" * (len(comparison.rows) > 1)
    main = Family("factor effect", f"Main effects of the factors{over}", "main effects of the factors")
    families = {main: factor_contrasts(comparison.design, rows)}
    if len(rows) == 1:
        return families
    effects = {row: factor_contrasts(comparison.design, [row]) for row in rows}
    families |= {
        Family(f"factor effect in {row}", f"Main effects of the factors, {row} only"): each
        for row, each in effects.items()
    }
    first, *others = rows
    title, plural = f"Does the effect of a factor depend on the {name}?", f"changes of these effects with the {name}"
    families[Family("factor interaction", title, plural)] = {
        f"{factor} on {row} - {factor} on {first}": contrast
        | {place: -weight for place, weight in effects[first][factor].items()}
        for row in others
        for factor, contrast in effects[row].items()
    }
    return families


def factor_contrasts(design: Design, rows: Sequence[str]) -> Contrasts:
    """Return {label: main effect} of all factors: mean of the cells with the factor minus mean of those without it."""
    contrasts = {}
    for factor in design.factors:
        high = [name for name, factors in design.points.items() if factor in factors]
        low = [name for name in design.points if name not in high]
        contrasts[design.label(factor)] = mean_difference(list(product(rows, high)), list(product(rows, low)))
    return contrasts
