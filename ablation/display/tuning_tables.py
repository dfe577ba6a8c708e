"""Tables and sentences about the tuning of a grid: what trials chose, and what a smaller budget would have found."""

import math
from typing import Any

from ablation.comparison import Cell, Comparison
from ablation.display.formats import Table
from ablation.display.sentences import with_minus
from ablation.tuning import Owner, Tuning
from engine.terminal import counted
from engine.text import shown
from stats.tuning import Curve

BAND_NOTE = (
    "Expected best score of n trials: the mean over all choices of n of the trials that were run. In brackets: a 95% "
    "band for the whole curve, over other trials and other images."
)


def tuning_tables(comparison: Comparison) -> list[Table]:
    """Return the tables about the tuning; an empty list without tuning."""
    tuning = comparison.tuning
    if tuning is None:
        return []
    tables = [choice_table(comparison), trials_table(tuning)]
    if tuning.curves:
        tables.append(budget_table(tuning))
    if any(not math.isnan(tau) for tau in tuning.agreement[:-1]):
        tables.append(early_table(tuning))
    return tables


def choice_table(comparison: Comparison) -> Table:
    """Return the table of chosen values, by row or cell."""
    tuning = comparison.tuning
    fields, config = list(tuning.config.ranges), tuning.config
    rows = []
    for owner in tuning.owners:
        ended = sum(trial.has_ended for trial in owner.trials)
        trials = f"{ended} of {len(owner.trials)}" if ended < len(owner.trials) else str(ended)
        trials += f" ({owner.num_diverged} diverged)" * bool(owner.num_diverged)
        if owner.best is None:
            rows.append([owner.name, *("not chosen" for _ in fields), "-", trials, "-"])
            continue
        values = [
            shown(owner.best.values[name]) + (f" ({owner.edges[name]})" if name in owner.edges else "")
            for name in fields
        ]
        rows.append([owner.name, *values, str(owner.best.job.trial), trials, f"{owner.best.score:.4f}"])
    header = ["", *fields, "from trial", "trials", f"{tuning.metric} of this trial"]
    images = f"{tuning.num_images:,} " * bool(tuning.num_images)
    notes = [
        f"Every {config.per} had the same {config.trials} trials, with the same values, drawn before the first trial "
        f"(seed {config.seed}). They are scored on {images}training images ({config.on:.0%}), and train on the others. "
        "No validation image is read."
    ]
    if config.per == "row" and len({place[1] for place in comparison.cells}) > 1:
        columns = list(dict.fromkeys(owner.trials[0].job.column for owner in tuning.owners))
        notes.append(
            f"The trials of a row ran in its first column ({', '.join(columns)}), and the other columns use the same "
            "values. To compare columns that may need different values, set per: cell."
        )
    epochs = sorted({trial.job.recipe()["train"]["epochs"] for owner in tuning.owners for trial in owner.trials})
    notes.append(f"Trials train for {' or '.join(map(str, epochs))} epochs.")
    if any(owner.edges for owner in tuning.owners):
        notes.append("(lowest), (highest): at the edge of the drawn values; the best value may be outside the range.")
    return Table(f"Tuning: {config.trials} trials per {config.per}", header, rows, notes=notes)


def trials_table(tuning: Tuning) -> Table:
    """Return the table of all trials: their values, and the score of each row or cell; the chosen trials are bold."""
    fields, rows, bold = list(tuning.config.ranges), [], set()
    for number, trials in enumerate(zip(*(owner.trials for owner in tuning.owners), strict=True)):
        scores = [
            "diverged" if trial.has_diverged else f"{trial.score:.4f}" if trial.results else trial.state.kind
            for trial in trials
        ]
        rows.append([str(number + 1), *(shown(trials[0].values[name]) for name in fields), *scores])
        columns = enumerate(tuning.owners, 1 + len(fields))
        bold |= {(number, j) for j, owner in columns if owner.best is trials[j - 1 - len(fields)]}
    header = ["trial", *fields, *(owner.name for owner in tuning.owners)]
    note = "Scores on the holdout, not on the validation images. Bold: chosen."
    return Table(f"Trials: {tuning.metric} by value", header, rows, bold, [note])


def budget_table(tuning: Tuning) -> Table:
    """Return the table of the expected best score by number of trials."""
    rows = [
        [str(n + 1), *(shown_point(curve, n) for curve in tuning.curves)] for n in range(len(tuning.curves[0].estimate))
    ]
    notes = [BAND_NOTE]
    return Table("Budget curve", ["trials", *(owner.name for owner in tuning.tuned)], rows, notes=notes)


def shown_point(curve: Curve, n: int) -> str:
    """Return a point of a curve as text, such as '0.310 [0.290, 0.330]'."""
    text = f"{curve.estimate[n]:.3f}"
    return text if math.isnan(curve.low[n]) else f"{text} [{curve.low[n]:.3f}, {curve.high[n]:.3f}]"


def early_table(tuning: Tuning) -> Table:
    """Return the table of the agreement between the ranking of the trials after an epoch and at the end."""
    found = zip(tuning.epochs[:-1], tuning.agreement[:-1], strict=True)  # the last epoch agrees with itself
    rows = [[str(epoch), f"{tau:.2f}"] for epoch, tau in found]
    note = (
        f"Kendall's tau between the ranking of the trials of a {tuning.config.per} after an epoch and at the end, mean "
        f"over {tuning.config.per}s: 1 is the same ranking, 0 no relation. If it is high early, trials can be shorter "
        "(train.epochs in the section tune)."
    )
    return Table("How early the ranking of the trials was known", ["epoch", "Kendall's tau"], rows, notes=[note])


def tuning_columns(comparison: Comparison, cell: Cell) -> dict[str, Any]:
    """Return what the trials chose for a cell, as columns of a CSV file; empty without tuning."""
    tuning = comparison.tuning
    if tuning is None:
        return {}
    best = next((owner.best for owner in tuning.owners if owner.name == tuning.owner_of(cell.place)), None)
    return {f"chosen {field}": best and best.values[field] for field in tuning.config.ranges} | {
        "trials": tuning.config.trials,
        "chosen_trial": best and best.job.trial,
        "trial_score": best and best.score,
    }


# ---- sentences ---------------------------------------------------------------------------------------------


def budget_sentences(comparison: Comparison) -> list[str]:
    """Return which row or cell leads after one trial and after all, and whether a change of the leader is shown."""
    tuning = comparison.tuning
    if tuning is None or tuning.flip is None:
        return []
    flip, owners = tuning.flip, tuning.tuned
    trials, leader = len(tuning.curves[0].estimate), owners[flip.leader]
    rival = best_rival(tuning, 0)
    first = f"On the tuning images with one trial, {leader.name} leads {owners[rival].name} by "
    first += lead_over(flip.leads[rival], 0)
    if flip.estimated is None:
        rival = best_rival(tuning, trials - 1)
        last = lead_over(flip.leads[rival], trials - 1)
        return [f"{first}; with {trials}, it leads {owners[rival].name} by {last}. The leader does not change."]
    number, winner = flip.estimated
    now = best_owner(tuning, trials - 1)
    sentence = f"{first}; from {counted(number, 'trial', 'trials')} on, {owners[winner].name} leads"
    if now == flip.leader:
        sentence += f", but with {trials} it is {leader.name} again."
    else:
        sentence += f"; with {trials}, {own_name(owners, winner, now)} leads {leader.name} by "
        sentence += f"{shown_lead(flip.leads[now], trials - 1)}."
    if flip.shown is None:
        return [f"{sentence} This change is not shown: a band includes 0, so it may be chance."]
    number, winner = flip.shown
    return [f"{sentence} The lead of {owners[winner].name} is shown from {counted(number, 'trial', 'trials')} on."]


def own_name(owners: list[Owner], winner: int, now: int) -> str:
    """Return 'it' if the last winner is the one that was just named."""
    return "it" if now == winner else owners[now].name


def best_owner(tuning: Tuning, n: int) -> int:
    """Return the number of the owner with the best curve at n + 1 trials."""
    sign = -1 if tuning.lower_is_better else 1
    return max(range(len(tuning.curves)), key=lambda k: sign * tuning.curves[k].estimate[n])


def best_rival(tuning: Tuning, n: int) -> int:
    """Return the best owner at n + 1 trials other than the leader."""
    sign = -1 if tuning.lower_is_better else 1
    return max(tuning.flip.leads, key=lambda k: sign * tuning.curves[k].estimate[n])


def lead_over(lead: Curve, n: int) -> str:
    """Return the lead of the leader over a rival, whose own lead is given."""
    return shown_lead(Curve(-lead.estimate, -lead.high, -lead.low), n)


def shown_lead(lead: Curve, n: int) -> str:
    """Return a lead as text, such as '0.012 (0.005 to 0.019)'."""
    return with_minus(f"{lead.estimate[n]:.3f} ({lead.low[n]:.3f} to {lead.high[n]:.3f})")
