"""The sentences of a comparison: its conclusion, and notes on runs that are stale or without a score."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePath

from ablation.comparison import Cell, Comparison, Difference, Note
from engine.text import listed
from stats.factorial import NONE, Design
from stats.planning import Variances

ROMAN = {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII"}  # as resolutions are written
MAX_NAMED = 6  # cells or differences in a sentence; the tables list all
OPEN = ("not shown", "not yet shown", "open", "undefined")  # verdicts that show nothing
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


def conclusion_of(comparison: Comparison) -> list[str]:
    """Return the conclusion as paragraphs to quote: the best, what is shown, what is open, what can be found."""
    family = comparison.main_family
    if not family:
        return ["No difference was computed."]
    if math.isnan(comparison.detectable):
        return [
            f"No difference can be tested on the {comparison.num_images} validation images: they are too few, contain "
            "too little to score, or all cells have the same score on them."
        ]
    best = [best_sentence(comparison)] if comparison.may_be_best else []
    paragraphs = [*best, *shown_sentences(comparison)]
    paragraphs.append(
        f"With {comparison.num_images} validation images and {seeds_of(comparison)} per cell, a true difference of "
        f"about {comparison.detectable:.2g} would be found in 80% of such experiments; much smaller ones would mostly "
        "be missed."
    )
    if not comparison.covers_seeds:
        paragraphs[-1] += " All statements hold for these trained weights only: one seed per cell cannot show how much "
        paragraphs[-1] += "training again would change the scores."
    if comparison.slices:
        paragraphs.append(" ".join(slice_sentences(comparison)))
    return paragraphs


def question_of(comparison: Comparison) -> str:
    """Return the question that the comparison answers, from the names of rows and columns, the score and the data."""
    cells = comparison.scored_cells
    if not cells:
        return f"Which of the {len(comparison.cells)} cells has the best {comparison.metric}?"
    run = cells[0].runs[0]
    root = run.config.get("data", {}).get("root") if run.is_experiment else None
    source = root and PurePath(root).name
    of = ", ".join(filter(None, [source, run.results.protocol.annotations]))
    where = f"on the {comparison.num_images:,} validation images{f' ({of})' * bool(of)}"
    extreme = "lowest" if comparison.lower_is_better else "highest"
    if comparison.design:
        change = "lower" if comparison.lower_is_better else "raise"
        return f"Which of the {len(comparison.design.factors)} factors {change} {comparison.metric} {where}?"
    names_are_variants = all(run.results.place == cell.place for cell in cells for run in cell.runs)
    if not comparison.column_name or (names_are_variants and len(comparison.columns) == 1):
        which = f"Which {comparison.row_name}"
    elif names_are_variants and len(comparison.rows) == 1:
        which = f"Which {comparison.column_name}"
    elif names_are_variants:
        which = f"Which {comparison.row_name} x {comparison.column_name}"
    else:  # the columns of a grid may be parts of the recipe
        which = f"Which of the {len(cells)} cells"
    if len(cells) == 1:
        return f"What is the {comparison.metric} of {cells[0].name} {where}?"
    margin = "" if comparison.margin is None else f" and larger than {comparison.margin:g}"
    return f"{which} has the {extreme} {comparison.metric} {where}, and is the difference real{margin}?"


def best_sentence(comparison: Comparison) -> str:
    """Return which cells may be the best, which probably are not, and how lucky the best mean score is."""
    kept, left_out = (
        [repr(comparison.cells[place].name) for place in places]
        for places in (comparison.may_be_best, comparison.probably_not_best)
    )
    if not left_out:
        which = "Either cell" if len(kept) == 2 else f"Any of the {len(kept)} cells"
        text = f"{which} may be the best: the data do not rule out any of them."
    elif len(kept) == 1:
        text = f"The best is {kept[0]} (95% confidence)."
    else:
        rest = listed(left_out, MAX_NAMED) if len(left_out) <= MAX_NAMED else f"the other {len(left_out)}"
        text = f"May be the best (95% confidence): {listed(kept, MAX_NAMED)}"
        text += f" ({len(kept)} cells)" * (len(kept) > MAX_NAMED) + f". Probably not the best: {rest}."
    if not math.isnan(comparison.optimism) and len(kept) > 1:
        best, cells = comparison.best, len(comparison.scored_cells)
        text += with_minus(
            f" {best.name!r} has the best mean, {best.mean:.4f}. The best of {cells} means is partly luck: expect "
            f"{best.mean - comparison.optimism:.4f}."
        )
    return text + " Lower is better." * comparison.lower_is_better


def shown_sentences(comparison: Comparison) -> list[str]:
    """Return a sentence for each kind of statement: differences and effects that are shown, small or open."""
    groups = {family.plural: found for family, found in comparison.families.items() if family.plural}
    by_verdict: dict[str, dict[str, list[Difference]]] = {}
    for name, family in groups.items():
        for each in family:
            by_verdict.setdefault(comparison.verdict(each), {}).setdefault(name, []).append(each)
    sentences = []
    for verdict in sorted(by_verdict, key=lambda verdict: (verdict in OPEN, verdict)):
        found = by_verdict[verdict]
        if verdict in OPEN:
            counts = [f"{count_of(family, groups[name], name)}" for name, family in found.items()]
            sentences.append(f"{verdict.capitalize()}: {'; '.join(counts)}.")
        else:
            named = "; ".join(f"{name}: {described(family)}" for name, family in found.items())
            sentences.append(f"{verdict[0].upper() + verdict[1:]} (with corrected 95% intervals): {named}.")
    return sentences


def count_of(some: Sequence[Difference], family: Sequence[Difference], name: str) -> str:
    """Return "3 of 4 differences (at most 0.021 each)", with the largest bound of these differences."""
    count = f"all {len(some)} {name}" if len(some) == len(family) > 1 else f"{len(some)} of {len(family)} {name}"
    if len(family) == 1:
        for plural in ("effects", "interactions", "differences", "changes"):
            name = name.replace(plural, plural[:-1], 1)
        count = f"the {name}"
    bound = max((each.bound for each in some if not math.isnan(each.bound)), default=math.nan)
    return count if math.isnan(bound) else f"{count} (at most {bound:.2g})"


def difference_notes(comparison: Comparison) -> list[str]:
    """Return the notes that explain the columns of a table of differences."""
    tested = (
        "all tables of differences and effects together" if comparison.one_family
        else "the tests of one table; each table has its own 5%"
    )  # fmt: skip
    seeds = "several seeds" if comparison.has_several_seeds else "one seed"
    level = f"{comparison.level:.2g}"
    notes = [
        f"Paired bootstrap over {comparison.num_images} images ({comparison.replicates:,} resamples), "
        f"{seeds_of(comparison)} per cell. p (Holm), verdict, corrected interval and at most: corrected for {tested}. "
        f"Significant: p (Holm) below {level}. At most: no difference is larger in size (95% confidence; one-sided, so "
        "it can be less than the end of the interval). Detectable: "
        "the true difference that would be significant in 80% of such experiments.",
    ]
    if comparison.covers_seeds:
        notes.append(
            "All statements are about models trained on this training set and validated on images from the same source."
        )
    if comparison.has_several_seeds:
        notes[0] += (
            " Single run better: the chance that one run of the first cell scores better than one of the second, on "
            "these images."
        )
    if comparison.tuning:
        notes.append(
            f"Intervals and tests of {comparison.metric}, also on slices, include the luck of tuning: with other "
            "trials, other values would have been chosen. Those of classes and other scores do not."
        )
    if comparison.known_spread:
        known = comparison.known_spread
        notes.append(
            f"The standard deviation between seeds, {known.standard_deviation:g} with {known.degrees:g} degrees of "
            f"freedom, was given with --seed-sd: these runs have {seeds} per cell and cannot show it."
        )
    return notes


def limits_of(variances: Variances) -> str:
    """Return a sentence with the shares of the variance, by what reduces them: seeds, images or trials."""
    parts = (
        "comes from the choice of images and stays with more seeds",
        "comes from how each run errs on these images; more seeds or more images reduce it",
        "comes from differences between seeds that remain on any number of images; only more seeds reduce it",
        "comes from the luck of tuning; only more trials reduce it",
    )
    shares = [(round(100 * share), part) for share, part in zip(variances.shares, parts, strict=True)]
    sentences = [f"{share}% {part}." for share, part in shares if share]
    sentences[0] = sentences[0].replace("% comes", "% of the variance comes", 1)
    error = f"The standard error of a typical difference is {variances.standard_error():.2g}."
    return f"What limits this comparison: {' '.join(sentences)} {error}"


def spread_note(variances: Variances) -> str:
    """Return a sentence on how well the variance between seeds is known from the runs of a comparison."""
    low, high = variances.spread_range
    return (
        f"The variance between seeds was estimated with {variances.degrees:.0f} degrees of freedom: the true standard "
        f"deviation may be {low:.1f} to {high:.1f} times as large, so numbers of seeds are a rough guide."
    )


def slice_sentences(comparison: Comparison) -> list[str]:
    """Return the significant differences on slices, and those that depend on the slice, as sentences to quote."""
    base = comparison.baseline_cell.name
    shown = [each for each in comparison.slices if each.difference.is_significant]
    depending = [each for each in comparison.slice_interactions if each.difference.is_significant]
    sentences = [
        f"In slice {each.slice.name} ({each.slice.num_images} images), {each.cell.name!r} minus {base!r} is "
        f"{with_ends(each.difference)}."
        for each in shown
    ]
    if not shown:
        count = len({each.slice.name for each in comparison.slices})
        sentences.append(f"In none of the {count} slices is a difference from {base!r} significant.")
    sentences += [
        f"In slice {each.slice.name}, the difference between {each.cell.name!r} and {base!r} is not the same as on the "
        f"other images: it changes by {with_ends(each.difference)}."
        for each in depending
    ]
    if comparison.slice_interactions and not depending:
        sentences.append("It is not shown that any difference depends on the slice.")
    return sentences


def with_ends(difference: Difference) -> str:
    """Return an estimate and its corrected interval as text: "+0.0210 (+0.0040 to +0.0380)"."""
    low, high = difference.simultaneous
    return with_minus(f"{difference.interval.estimate:+.4f} ({low:+.4f} to {high:+.4f})")


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


def described(differences: Sequence[Difference]) -> str:
    """Return differences as text: "'fpn' minus 'none' is −0.0101 (−0.0174 to −0.0023); ...", at most MAX_NAMED."""
    texts = [
        f"{quoted(each.label)} is {with_ends(each)}"
        for each in sorted(differences, key=lambda each: -abs(each.interval.estimate))[:MAX_NAMED]
    ]
    more = len(differences) - MAX_NAMED
    return "; ".join(texts + [f"and {more} more"] * (more > 0))


def quoted(label: str) -> str:
    """Return "'fpn' minus 'none'" for the label "fpn - none"; labels of interactions have more parts and stay whole."""
    parts = label.split(" - ")
    return " minus ".join(map(repr, parts)) if len(parts) == 2 else repr(label)


def with_minus(text: str) -> str:
    """Return the text with minus signs instead of hyphens before numbers."""
    return NEGATIVE.sub("\N{MINUS SIGN}", text)
