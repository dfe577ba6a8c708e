"""The sentences of a comparison: its conclusion, and notes on runs that are stale or without a score."""

import math
import re
from collections.abc import Collection, Iterable, Sequence

from ablation.comparison import Cell, Comparison, Difference, Note
from stats.factorial import NONE, Design

ROMAN = {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII"}  # as resolutions are written
NEGATIVE = re.compile(r"(?<![\w-])-(?=\d)")


def run_notes(comparison: Comparison, counted: bool) -> list[str]:
    """Return 'all 12 runs: stale (...)' for each reason. counted: for runs with a score in the table, else the rest."""
    shared: dict[str, list[tuple[Cell, Note]]] = {}
    for cell in comparison.cells.values():
        for note in cell.notes:
            if counted == any(run.seed == note.seed for run in cell.runs):
                shared.setdefault(note.reason, []).append((cell, note))
    lines = []
    for reason, noted in shared.items():
        names = list(dict.fromkeys(cell.name for cell, _ in noted))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if len(noted) == 1:
            runs = f"{names[0]}, seed {noted[0][1].seed}"
        elif len(noted) == comparison.num_runs:
            runs = f"all {len(noted)} runs"
        else:
            runs = f"{len(noted)} runs ({', '.join(names[:3])}{more})"
        lines.append(f"{runs}: {reason}")
    return lines


def seeds_of(comparison: Comparison) -> str:
    """Return '3 seeds', or '1 to 3 seeds' if cells have different numbers of seeds."""
    counts = sorted({len(cell.scores) for cell in comparison.scored_cells}) or [0]
    shown = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"{shown} seeds" if counts[-1] > 1 else f"{shown} seed"


def unit_of(comparison: Comparison) -> str:
    """Return the unit of differences: the name of the score, with a remark if negative differences are better."""
    return f"{comparison.metric} (negative is better)" if comparison.lower_is_better else comparison.metric


def conclusion_of(comparison: Comparison) -> str:
    """Return a conclusion to quote: the significant differences, and the size of a detectable difference."""
    family = comparison.main_family
    if not family:
        return "No difference was computed."
    if math.isnan(comparison.detectable):
        return (
            f"No difference can be tested on the {comparison.num_images} validation images: they are too few, contain "
            "too little to score, or all cells have the same score on them."
        )
    shown = [each for each in family if each.significant]
    effects = [each for each in (*comparison.row_effects, *comparison.column_effects) if each.significant]
    depending = [each for each in comparison.factor_interactions if each.significant]
    scope = "" if comparison.has_several_seeds else ", for these trained weights only (one seed per cell)"
    kind = "main effects of factors on" if family is comparison.factor_effects else "differences in"
    result = f"{len(shown)} of {len(family)} {kind} {comparison.metric} significant"
    listed = f": {_listed(shown)}" if shown else ""
    sentences = [f"A paired bootstrap with Holm correction finds {result} at the 5% level{scope}{listed}."]
    if comparison.lower_is_better and (shown or effects):
        sentences.append("Lower is better, so a negative difference is an improvement.")
    if comparison.factor_interactions:
        which = f"depend significantly on the {comparison.row_name}"
        sentences.append(f"Factors whose effects {which}: {_listed(depending) or 'none'}.")
    if comparison.row_effects:
        sentences.append(f"Significant main effects, averaged over the rest of the grid: {_listed(effects) or 'none'}.")
    sentences.append(
        f"With {comparison.num_images} validation images and {seeds_of(comparison)} per cell, a true difference of "
        f"about {comparison.detectable:.2g} would be significant in 80% of such experiments; "
        "much smaller ones would mostly be missed."
    )
    if not comparison.has_several_seeds:
        sentences.append("The variation between seeds is not included: one seed per cell cannot show it.")
    sentences += slice_sentences(comparison)
    return " ".join(sentences)


def slice_sentences(comparison: Comparison) -> list[str]:
    """Return the significant differences on slices, and those that depend on the slice, as sentences to quote."""
    if not comparison.slices:
        return []
    base = comparison.baseline_cell.name
    shown = [each for each in comparison.slices if each.difference.significant]
    depending = [each for each in comparison.slice_interactions if each.difference.significant]
    scope = "" if comparison.has_several_seeds else ", for these trained weights"
    sentences = [
        f"In slice {each.slice.name} ({each.slice.num_images} images){scope}, {each.cell.name!r} minus {base!r} is "
        f"{_with_ends(each.difference)}."
        for each in shown
    ]
    if not shown:
        count = len({each.slice.name for each in comparison.slices})
        sentences.append(f"In none of the {count} slices is a difference from {base!r} significant.")
    sentences += [
        f"In slice {each.slice.name}, the difference between {each.cell.name!r} and {base!r} is not the same as on the "
        f"other images{scope}: it changes by {_with_ends(each.difference)}."
        for each in depending
    ]
    if comparison.slice_interactions and not depending:
        sentences.append("It is not shown that any difference depends on the slice.")
    return sentences


def _with_ends(difference: Difference) -> str:
    """Return an estimate and its simultaneous interval as text: "+0.021 (simultaneous 95% interval ...)"."""
    ends = f"{difference.interval.low:+.4f} to {difference.interval.high:+.4f}"
    return with_minus(f"{difference.interval.estimate:+.4f} (simultaneous 95% interval {ends})")


def design_notes(design: Design) -> list[str]:
    """Return sentences about the aliased effects of a factorial design, which no analysis of its runs can separate."""
    runs, factors = len(design.points), len(design.factors)
    if design.resolution is None:
        return [f"Full factorial design: all {runs} combinations of {factors} factors, so no effects are aliased."]

    def equal(groups: Iterable[Iterable[Collection[str]]]) -> str:
        return "; ".join(" = ".join(map(design.letters, group)) for group in groups)

    products = equal([[name], others] for name, others in design.factors.items() if others)
    order = design.resolution - 1
    main = {name: [each for each in design.aliases(frozenset([name])) if len(each) <= 3] for name in design.factors}
    main = [[[name], *aliases] for name, aliases in main.items() if aliases]
    pairs = design.alias_groups(2)
    return [
        f"Fractional factorial design of resolution {ROMAN.get(design.resolution, design.resolution)}: {runs} of the "
        f"{2**factors} combinations of {factors} factors, with {products}. It cannot separate aliased effects: each "
        "estimate is the sum of a main effect and its aliases.",
        f"Main effects are aliased only with interactions of {order} or more factors{': ' * bool(main)}{equal(main)}.",
        f"Two-factor interactions that are aliased with each other: {equal(pairs) or 'none'}.",
    ]


def reference_of(comparison: Comparison) -> str:
    """Return the name of the cell that recipes are compared with."""
    first = next(cell for cell in comparison.cells.values() if cell.runs)
    return f"{first.row} x {NONE}" if comparison.design else first.name


def _listed(differences: Sequence[Difference]) -> str:
    """Return differences as text: "'fpn' minus 'none' is −0.0101 (95% interval −0.0174 to −0.0023); ..."."""
    return "; ".join(
        f"{' minus '.join(map(repr, each.label.rsplit(' - ', 1)))} is {with_minus(f'{each.interval.estimate:+.4f}')} "
        f"(95% interval {with_minus(f'{each.interval.low:+.4f} to {each.interval.high:+.4f}')})"
        for each in differences
    )


def with_minus(text: str) -> str:
    """Return the text with minus signs instead of hyphens before numbers."""
    return NEGATIVE.sub("\N{MINUS SIGN}", text)
