"""What the trials of a tuned grid show: the chosen values, budget curves, and where the winner changes.

ablation/scheduling/trials.py defines the trials and chooses. The statistics are in stats/tuning.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ablation.scheduling.grid_file import TuneConfig
from ablation.scheduling.jobs import Grid, read_cells
from ablation.scheduling.trials import Trial, best_trial, owner_name, read_trials
from engine.logbook import progress_bar
from engine.text import shown
from records.metrics import read_metrics
from records.results import Place
from stats.bootstrap import MIN_IMAGES, image_weights, resampled_scores
from stats.image_statistics import load_statistics
from stats.trial_points import at_edge
from stats.tuning import Curve, Flip, budget_curves, expected_best, flip_budget, rank_agreement, tuning_luck

MAX_REPLICATES = 2_000  # of a budget curve; resampling costs as much as for that many runs


@dataclass(frozen=True)
class Owner:
    """A row or cell with its trials. best: the trial that gave it its values; None if not all trials have ended."""

    name: str
    trials: list[Trial]
    best: Trial | None
    edges: Mapping[str, str]  # chosen values that are the lowest or highest drawn one, by field

    @property
    def num_diverged(self) -> int:
        """Number of trials whose loss was not finite."""
        return sum(trial.has_diverged for trial in self.trials)

    @property
    def scores(self) -> np.ndarray:
        """Scores of the trials, (N,); nan for those that diverged."""
        return np.array([trial.score for trial in self.trials])


@dataclass(frozen=True, eq=False)
class Tuning:
    """The trials of a grid, and what they show.

    The curves are those of `tuned`, the owners whose trials have all ended. replicates: number of resamples of trials
    and images; 0: no bands, because there are too few images."""

    config: TuneConfig
    owners: list[Owner]
    metric: str
    lower_is_better: bool
    num_images: int  # of the holdout; 0 before the first trial has ended
    curves: list[Curve]  # by owner in `tuned`; expected best score of 1 to N trials
    flip: Flip | None  # owners are numbered as in `tuned`; None with fewer than two
    epochs: list[int]  # of the trials, with a score in all of them
    agreement: list[float]  # Kendall's tau between the ranking after each of `epochs` and at the end, mean over owners
    luck: dict[str, np.ndarray]  # by name of the tuned owner: (R,), see stats.tuning.tuning_luck

    def owner_of(self, place: Place) -> str:
        """Return the name of the owner whose trials chose the values of a cell."""
        return owner_name(place, self.config)

    @property
    def tuned(self) -> list[Owner]:
        return [owner for owner in self.owners if owner.best]


def read_tuning(grid: Grid, experiments: Path, replicates: int, resample_seed: int) -> Tuning:
    """Read the trials of a tuned grid, and compute what they show. replicates: number of resamples.

    Raises ValueError if trials were scored on different images."""
    tune, owners = grid.config.tune, []
    for place, trials in read_trials(grid, read_cells(experiments)).items():
        best = best_trial(trials)
        points = [trial.values for trial in trials]
        edges = at_edge(points, trials.index(best), tune.ranges) if best else {}
        owners.append(Owner(owner_name(place, tune), trials, best, edges))
    tuned = [owner for owner in owners if owner.best]
    known = [trial.results for owner in owners for trial in owner.trials if trial.results]
    metric, lower_is_better = (known[0].metric, known[0].lower_is_better) if known else ("score", False)
    num_images = known[0].protocol.images if known else 0
    curves, flip, luck = [], None, {}
    if tuned:
        values = np.stack([owner.scores for owner in tuned])
        noise = tuning_luck(values, replicates, resample_seed, lower_is_better)
        luck = dict(zip([owner.name for owner in tuned], noise, strict=True))
        if num_images < MIN_IMAGES:
            flat = [expected_best(each, lower_is_better) for each in values]
            curves = [Curve(each, each * math.nan, each * math.nan) for each in flat]
        else:
            options = {"points": [trial.values for trial in tuned[0].trials], "seed": resample_seed}
            options["lower_is_better"] = lower_is_better
            sample = resampled_trials(tuned, metric, min(replicates, MAX_REPLICATES), resample_seed)
            curves = [within_limits(each, lower_is_better) for each in budget_curves(values, sample, **options)]
            flip = flip_budget(values, sample, **options) if len(tuned) > 1 else None
    epochs, agreement = early_ranking(tuned, metric, lower_is_better)
    return Tuning(tune, owners, metric, lower_is_better, num_images, curves, flip, epochs, agreement, luck)


def within_limits(curve: Curve, lower_is_better: bool) -> Curve:
    """Return a curve whose band is limited to possible scores: from 0, and except for a loss, to 1."""
    return replace(curve, low=curve.low.clip(0), high=curve.high if lower_is_better else curve.high.clip(max=1))


def resampled_trials(owners: Sequence[Owner], metric: str, replicates: int, seed: int) -> np.ndarray:
    """Return the scores of all trials on resamples of the images of the holdout, (K, N, R); nan if a trial diverged.

    Raises ValueError if trials were scored on different images."""
    sample = np.full((len(owners), len(owners[0].trials), replicates), math.nan)
    weights, first = None, None
    done = [(k, n, trial) for k, owner in enumerate(owners) for n, trial in enumerate(owner.trials) if trial.results]
    for k, n, trial in progress_bar(done, desc="resampling trials", unit="trial", leave=False):
        statistics = load_statistics(trial.state.experiment)
        if weights is None:
            first, weights = statistics.image_ids, image_weights(len(statistics.image_ids), replicates, seed)
        if not np.array_equal(statistics.image_ids, first):
            raise ValueError(f"{trial.state.experiment}: scored on different images from {done[0][2].state.experiment}")
        sample[k, n] = resampled_scores(statistics, weights)[0][metric]
    return sample


def early_ranking(owners: Sequence[Owner], metric: str, lower_is_better: bool) -> tuple[list[int], list[float]]:
    """Return the epochs after which all trials have a score, and how well their ranking then agrees with the final one.

    The agreement is Kendall's tau over the trials of an owner, averaged over owners. Diverged trials are left out."""
    curves = []
    for owner in owners:
        done = [trial for trial in owner.trials if trial.results]
        lines = [read_metrics(trial.state.experiment) for trial in done]
        curves.append(
            [{line["epoch"]: line[metric] for line in each if line.get(metric) is not None} for each in lines]
        )
    common = [set(curve) for of_owner in curves for curve in of_owner]
    epochs = sorted(set.intersection(*common)) if common else []
    agreement = []
    for epoch in epochs:
        taus = []
        for owner, of_owner in zip(owners, curves, strict=True):
            final = np.array([trial.score for trial in owner.trials if trial.results])
            early = np.array([curve[epoch] for curve in of_owner])
            taus.append(rank_agreement(early[None], final, lower_is_better)[0])
        taus = [tau for tau in taus if not math.isnan(tau)]
        agreement.append(float(np.mean(taus)) if taus else math.nan)
    return epochs, agreement


def tuning_warnings(tuning: Tuning) -> list[str]:
    """Return warnings about arbitrary choices, and about chosen values at the edge of the trials."""
    warnings = [
        f"{owner.name}: no trial scores above 0, so the choice is arbitrary; raise train.epochs in the section tune, "
        "or change the range"
        for owner in tuning.tuned
        if not tuning.lower_is_better and owner.best.score == 0
    ]
    return warnings + [
        f"{owner.name}: the chosen {name} {shown(owner.best.values[name])} is the {edge} of its trials; the best value "
        "may be beyond it: add trials, or widen the range (which draws new values for all trials)"
        for owner in tuning.tuned
        for name, edge in owner.edges.items()
    ]
