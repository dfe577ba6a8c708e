"""Scores under corruptions of the images: the tables, the sentences, and the columns in CSV."""

from ablation.comparison import Cell, Comparison, cell_name
from ablation.display.difference_tables import shown_p, shown_range
from ablation.display.formats import Table
from ablation.display.sentences import with_minus
from engine.text import listed
from stats.contrasts import Interval

MAX_NAMED = 6  # cells in a sentence


def robustness_tables(comparison: Comparison) -> list[Table]:
    """Return the tables of scores under corruption: means and differences by cell, and the score by corruption."""
    if comparison.robustness is None:
        return []
    return [means_table(comparison), corruption_table(comparison)]


def means_table(comparison: Comparison) -> Table:
    """Return the table of clean score, mPC and rPC of each cell, and of the differences of mPC from the baseline."""
    found, base = comparison.robustness, comparison.baseline_cell
    rows, bold = [], set()
    for number, (place, scores) in enumerate(found.cells.items()):
        row = [cell_name(place), *(with_interval(each) for each in (scores.clean, scores.mean, scores.relative))]
        change = found.differences.get(place)
        if change is None:
            row += ["baseline", "", "", ""]
        else:
            row += [f"{change.interval.estimate:+.4f}", shown_range(*change.simultaneous)]
            row += [shown_p(change.p_holm, comparison, change.num_tests, found.replicates), comparison.verdict(change)]
            if change.is_significant and comparison.covers_seeds:
                bold.add((number, 4))
        rows.append(row)
    header = ["", "clean", "mPC", "rPC", f"mPC: difference from {base.name}", "corrected interval", "p (Holm)"]
    notes = [*means_notes(comparison), *agreement_sentences(comparison)]
    return Table("Performance under corruption", [*header, "verdict"], rows, bold, notes)


def means_notes(comparison: Comparison) -> list[str]:
    """Return what the columns of the table of means are, which runs count, and what the intervals assume."""
    found = comparison.robustness
    severities = ", ".join(map(str, found.severities))
    notes = [
        f"mPC: the mean {comparison.metric} over {len(found.corruptions)} corruptions at the severities {severities}. "
        "rPC: mPC divided by the clean score (arXiv 1907.07484). In brackets: 95% intervals. Differences are of mPC, "
        f"corrected for {max(1, len(found.differences))} tests (p: Holm; intervals: Bonferroni). Significant: p (Holm) "
        f"below {found.level:.2g}. Corrupted with {found.package}; {found.replicates:,} resamples."
    ]
    if comparison.looks:
        number = comparison.looks.complete
        notes.append(
            f"Only the runs of planned look {number} count, which is at {comparison.looks.planned[number - 1]} seeds "
            "per cell, and the tests have the level of this look. The clean score of the other tables is that of all "
            "runs."
        )
    if comparison.tuning:
        notes.append(
            "The luck of tuning, which is included, was measured on the original images and is assumed to be the same "
            "for mPC."
        )
    tested = [*found.differences.values(), *found.from_best.values()]
    if unstable := list(dict.fromkeys(each.label for each in tested if not each.is_stable)):
        notes.append(
            f"Other resamples may change the verdict on {listed(unstable, MAX_NAMED)}, because the p value is close to "
            "the level: try other values of --resample-seed."
        )
    return notes


def corruption_table(comparison: Comparison) -> Table:
    """Return the table of the score of each cell under each corruption."""
    cells = comparison.robustness.cells
    rows = [
        [name.replace("_", " "), *(f"{each.by_corruption[name].estimate:.3f}" for each in cells.values())]
        for name in comparison.robustness.corruptions
    ]
    note = "Means over seeds and severities. Differences between cells are tested for the mean over corruptions only."
    header = ["corruption", *map(cell_name, cells)]
    return Table(f"{comparison.metric} by corruption", header, rows, notes=[note])


def with_interval(interval: Interval) -> str:
    """Return an estimate and its interval, such as "0.312 [0.290, 0.331]"."""
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def robustness_sentences(comparison: Comparison) -> list[str]:
    """Return whether the best cell on original images stays the best under corruption, as a paragraph."""
    found = comparison.robustness
    if found is None or len(found.cells) < 2:
        return []
    best, rival = (repr(cell_name(place)) for place in (found.best, found.best_corrupted))
    scope = "" if comparison.covers_seeds else " This holds for these trained weights only."
    if found.may_be_best == [found.best]:
        return [f"Under corruption of the images, {best} stays the best (95% confidence).{scope}"]
    if found.best not in found.may_be_best:
        change = found.from_best[found.best_corrupted]
        numbers = f"mPC {change.interval.estimate:+.4f}, corrected interval {shown_range(*change.simultaneous)}"
        return [with_minus(f"Under corruption of the images, {rival} becomes better than {best} ({numbers}).{scope}")]
    if found.best == found.best_corrupted:
        text = f"{best}, the best on the original images, also has the highest mPC."
    else:
        text = f"{rival} has the highest mPC, and {best} the best score on the original images."
    rivals = listed([repr(cell_name(place)) for place in found.may_be_best], MAX_NAMED)
    return [f"Under corruption of the images, it is not shown which cell is the best: any of {rivals}. {text}{scope}"]


def agreement_sentences(comparison: Comparison) -> list[str]:
    """Return how well the rankings by clean score and by mPC agree, as sentences."""
    agreement = comparison.robustness.agreement
    if agreement is None:
        return []
    tau = agreement.tau
    return [
        f"Kendall's tau of the orders by clean score and by mPC is {tau.estimate:.2f} [{tau.low:.2f}, {tau.high:.2f}] "
        f"(1: same order). The whole order is the same in {agreement.same_order:.0%} of the resamples, and the best "
        f"cell in {agreement.same_best:.0%}."
    ]


def robustness_columns(comparison: Comparison, cell: Cell) -> dict[str, float | str | None]:
    """Return the columns of a cell in CSV that --corruptions adds.

    mPC and rPC with 95% intervals; mPC_difference from the baseline with its corrected interval, Holm-corrected p value
    and verdict, None for the baseline; and the mean score of each corruption, such as mPC[fog]."""
    found = comparison.robustness
    if found is None:
        return {}
    scores, change = found.cells.get(cell.place), found.differences.get(cell.place)
    columns: dict[str, float | str | None] = {}
    for name in ("mPC", "rPC"):
        interval = scores and {"mPC": scores.mean, "rPC": scores.relative}[name]
        columns |= {name: interval and interval.estimate}
        columns |= {f"{name}_low": interval and interval.low, f"{name}_high": interval and interval.high}
    columns |= {"mPC_difference": change and change.interval.estimate}
    columns |= {"mPC_difference_low": change and change.simultaneous[0]}
    columns |= {"mPC_difference_high": change and change.simultaneous[1]}
    columns |= {"mPC_p_holm": change and change.p_holm, "mPC_verdict": change and comparison.verdict(change)}
    return columns | {f"mPC[{name}]": scores and scores.by_corruption[name].estimate for name in found.corruptions}
