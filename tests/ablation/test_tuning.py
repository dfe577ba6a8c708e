"""Tests of ablation/tuning.py and ablation/display/tuning_tables.py: what the trials of a tuned grid show."""

import csv
import io
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

from ablation import compare as command
from ablation import plan, slices, uncertainty
from ablation.cells import compare
from ablation.comparison import Comparison
from ablation.display.report import write_report
from ablation.display.sentences import limits_of
from ablation.display.tables import to_csv
from ablation.display.tuning_tables import budget_sentences, tuning_tables
from ablation.looks import replicates_at_look
from ablation.scheduling.jobs import Grid, read_grid, write_cell
from ablation.scheduling.trials import trial_jobs, tuned
from ablation.tuning import Tuning, read_tuning
from engine.command import DIVERGED
from records.status import Status, write_status
from stats.contrasts import Interval
from stats.tuning import expected_best
from tests.ablation.conftest import IMAGES

GRID = """
task: tuned_task
seeds: [0, 1]
tune: {trials: 6, on: 0.2, train.epochs: 0.5, optim.learning_rate: {log_uniform: [1e-4, 1e-2]}}
rows:
  - {name: tough, config: base.yaml}
  - {name: picky, config: base.yaml, overrides: [model.size=2]}
columns: [{name: none}]
"""
CURVES = {"tough": (0.6, 1e-3, 0.01), "picky": (0.8, 8e-3, 0.1)}  # best quality, best rate, loss per squared log


@pytest.fixture
def write_grid(tmp_path, monkeypatch, new_experiments):
    """Return a function that writes a tuned grid with its trials and runs, and returns it with its experiments."""
    (tmp_path / "tuned_task.py").write_text('COMPUTES, HOLDOUT = {"stub": ("tuned_task.py",)}, "data.holdout"\n')
    (tmp_path / "base.yaml").write_text("model: {size: 1}\noptim: {learning_rate: 1.0}\ntrain: {epochs: 12}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ablation.scheduling.staleness.PROJECT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    experiments = new_experiments()

    def write(text: str = GRID, diverged: tuple[int, ...] = (), missing: tuple[int, ...] = ()) -> Grid:
        path = tmp_path / "grid_tuned.yaml"
        path.write_text(text)
        grid = read_grid(path)
        for place, jobs in trial_jobs(grid).items():
            for job in jobs:
                if job.trial not in missing:
                    add(job, *CURVES[place[0]], job.trial in diverged)
        for job in tuned(grid, experiments.folder).jobs:
            if job.chosen is not None:
                add(job, *CURVES[job.row], has_diverged=False)
        return grid

    def add(job, peak, best, sharpness, has_diverged):
        rate = job.recipe()["optim"]["learning_rate"]
        quality = min(max(peak - sharpness * math.log(rate / best) ** 2, 0.05), 0.95)
        path = experiments.add(job.row, job.column, job.seed, quality, config={"epochs": 6 if job.trial else 12})
        write_cell(job, path)
        if has_diverged:
            (path / "results.json").unlink()
            write_status(path, Status("failed", exit_code=DIVERGED))

    write.folder = experiments.folder
    return write


def read(write_grid, grid: Grid) -> Tuning:
    return read_tuning(grid, write_grid.folder, 200, 0)


def text(write_grid, form: str = "md") -> str:
    words = ["grid_tuned.yaml", "--experiments", str(write_grid.folder), "--replicates", "200", "--format", form]
    command.main(command.parse_arguments([*words, "--output", "out"]), None)
    with open("out", encoding="utf-8") as file:
        return file.read()


def test_the_curve_of_each_row_is_the_expected_best_of_its_trials(write_grid):
    tuning = read(write_grid, write_grid())
    assert [owner.name for owner in tuning.tuned] == ["tough", "picky"]
    for owner, curve in zip(tuning.tuned, tuning.curves, strict=True):
        np.testing.assert_allclose(curve.estimate, expected_best(owner.scores))
        assert curve.estimate[0] == pytest.approx(np.mean(owner.scores))
        assert curve.estimate[-1] == pytest.approx(owner.best.score)
        assert (curve.low <= curve.estimate).all()
        assert (curve.estimate <= curve.high).all()


def test_the_winner_flips_if_the_other_row_is_better_only_when_tuned(write_grid):
    tuning = read(write_grid, write_grid())
    assert tuning.tuned[tuning.flip.leader].name == "tough"
    number, winner = tuning.flip.estimated
    assert tuning.tuned[winner].name == "picky"
    assert 1 < number < 6


def test_the_final_runs_have_the_chosen_rate_and_the_tables_say_so(write_grid):
    grid = write_grid()
    tuning, page = read(write_grid, grid), text(write_grid)
    for owner in tuning.tuned:
        rate = owner.best.values["optim.learning_rate"]
        row = next(line for line in page.splitlines() if line.startswith(f"| {owner.name} | {rate}"))
        assert f"| {owner.best.score:.4f} |" in row
        assert all(job.recipe()["optim"]["learning_rate"] == rate for job in tuned(grid, write_grid.folder).jobs
                   if job.row == owner.name)  # fmt: skip
    assert "### Tuning: 6 trials per row" in page
    assert "### Budget curve" in page
    lines = page[page.index("### Trials: mAP by value") :].splitlines()[4:10]
    for number, line in enumerate(lines):
        trials = [owner.trials[number] for owner in tuning.tuned]
        assert [cell.strip(" *") for cell in line.strip("|").split("|")] == [
            str(number + 1), str(trials[0].values["optim.learning_rate"]), *(f"{trial.score:.4f}" for trial in trials),
        ]  # fmt: skip
    assert re.search(r"with one trial, tough leads picky by 0\.\d+ \(.* to .*\); from \d trials on, picky leads", page)


def test_a_value_at_the_edge_is_marked_and_warned_about(write_grid):
    page = text(write_grid, "md") if write_grid() else ""
    assert re.search(r"WARNING: picky: the chosen optim.learning_rate \S+ is the highest of its trials", page)
    assert "(highest)" in page
    assert "WARNING: tough" not in page


def test_a_diverged_trial_counts_as_the_worst_and_is_listed(write_grid):
    tuning = read(write_grid, write_grid(diverged=(1,)))
    for owner, curve in zip(tuning.tuned, tuning.curves, strict=True):
        assert owner.num_diverged == 1
        assert curve.estimate[0] == pytest.approx(np.nansum(owner.scores) / 6)
    assert "6 (1 diverged)" in text(write_grid)


def test_without_all_trials_there_is_no_choice_but_a_table(write_grid):
    grid = write_grid(missing=(4,))
    tuning = read(write_grid, grid)
    assert not tuning.tuned
    assert not tuning.curves
    with pytest.raises(ValueError, match="no runs to compare"):
        text(write_grid)


def test_every_format_has_the_choices(write_grid):
    tuning = read(write_grid, write_grid())
    rates = {owner.name: owner.best.values["optim.learning_rate"] for owner in tuning.tuned}
    lines = {line["backbone"]: line for line in csv.DictReader(io.StringIO(text(write_grid, "csv")))}
    assert {name: float(line["chosen optim.learning_rate"]) for name, line in lines.items()} == rates
    assert "Budget curve" in text(write_grid, "latex")
    page = text(write_grid, "html")
    assert '<section id="tuning">' in page
    assert "Expected best mAP by number of trials" in page


def test_the_agreement_with_the_final_ranking_is_that_of_the_recorded_scores(write_grid):
    tuning = read(write_grid, write_grid())
    assert tuning.epochs == [2, 4, 6, 8, 10, 12]
    assert all(0.9 <= tau <= 1 for tau in tuning.agreement)  # the curves of the fake runs do not cross


def test_with_one_row_there_is_a_curve_and_no_flip(write_grid, tmp_path):
    one = re.sub(r"  - \{name: picky.*\n", "", GRID)
    tuning = read(write_grid, write_grid(one))
    assert len(tuning.curves) == 1
    assert tuning.flip is None


def test_a_grid_without_tuning_has_no_tuning_tables(experiments):
    experiments.add("a")
    experiments.add("b")
    comparison = experiments.compare()
    assert tuning_tables(comparison) == budget_sentences(comparison) == []
    write_report(experiments.folder / "page.html", comparison)
    assert 'id="tuning"' not in (experiments.folder / "page.html").read_text()


# ---- the luck of tuning ------------------------------------------------------------------------------------

PICKY, TOUGH = ("picky", "none"), ("tough", "none")


def compared(write_grid, grid: Grid, **options) -> Comparison:
    return compare([grid.path], write_grid.folder, replicates=400, baseline="tough x none", **options)


@pytest.fixture
def with_and_without(write_grid, monkeypatch, tmp_path) -> tuple[Comparison, Comparison]:
    """Return the comparison of the tuned grid, and the same one without the luck of tuning. With slices."""
    grid, source = write_grid(), tmp_path / "night.csv"
    source.write_text("image_id,night\n" + "".join(f"{image},{image % 2}\n" for image in range(IMAGES)))
    tuned = compared(write_grid, grid, slices=[str(source)])
    monkeypatch.setattr(uncertainty, "luck_of", lambda *_: None)
    monkeypatch.setattr(slices, "luck_of", lambda *_: None)
    return tuned, compared(write_grid, grid, slices=[str(source)])


def test_intervals_of_the_compared_score_include_the_luck_of_tuning_and_others_do_not(with_and_without):
    tuned, plain = with_and_without
    assert width(tuned.intervals[PICKY]["mAP"]) > 1.5 * width(plain.intervals[PICKY]["mAP"])  # its trials differ a lot
    assert width(tuned.differences[0].interval) > 1.5 * width(plain.differences[0].interval)
    assert tuned.differences[0].interval.estimate == plain.differences[0].interval.estimate
    assert [width(each.difference.interval) > 1.2 * width(other.difference.interval)
            for each, other in zip(tuned.slices, plain.slices, strict=True)] == [True, True]  # fmt: skip
    assert [each.difference.interval for each in tuned.slice_interactions] == [
        each.difference.interval for each in plain.slice_interactions
    ]
    assert tuned.per_class == plain.per_class
    assert tuned.per_class_change == plain.per_class_change


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_the_luck_of_tuning_is_a_limit_of_its_own(write_grid, with_and_without):
    tuned, plain = with_and_without
    luck = tuned.tuning.luck["picky"] - tuned.tuning.luck["tough"]
    assert all(np.array_equal(tuned.run_scores[place], plain.run_scores[place]) for place in (PICKY, TOUGH))
    assert tuned.variances.tuning == pytest.approx(np.var(luck))
    assert replace(tuned.variances, tuning=0.0) == plain.variances
    assert tuned.differences[0].detectable > 1.5 * plain.differences[0].detectable
    share = tuned.variances.shares[3]
    assert share > 0.5
    assert f"{round(100 * share)}% " in limits_of(tuned.variances)
    assert "more trials" in limits_of(tuned.variances)
    assert "more trials" not in limits_of(plain.variances)
    (line, *_) = csv.DictReader(io.StringIO(to_csv(tuned)))
    assert float(line["share_tuning"]) == share


def test_the_luck_of_tuning_is_in_the_replicates_of_a_look(write_grid, monkeypatch):
    comparison = compared(write_grid, write_grid())
    luck = np.stack([comparison.tuning.luck[name] for name in ("tough", "picky")])
    found = replicates_at_look(comparison, comparison.run_scores)
    monkeypatch.setattr(comparison, "tuning", None)
    np.testing.assert_allclose(found - replicates_at_look(comparison, comparison.run_scores), luck, atol=1e-12)


def test_a_plan_of_a_tuned_grid_reads_its_runs_and_says_that_nothing_but_trials_finds_small_differences(write_grid):
    grid = write_grid()
    words = [str(grid.path), "--experiments", str(write_grid.folder), "--replicates", "400", "--find", "0.001"]
    arguments = plan.parse_arguments(words)
    found = plan.make_plan(arguments.paths, arguments)
    assert found.is_measured
    assert found.new_runs(3) == {"tough x none": 1, "picky x none": 1}
    assert found.variances == compared(write_grid, grid).variances
    page = plan.as_markdown(found, arguments)
    assert "No number of seeds and images will do" in page
    assert "without the trials" in page


@pytest.mark.parametrize(("owners", "is_exact"), [(("a", "b"), False), (("a", "a"), True)])
def test_the_exact_test_of_classifiers_is_not_used_if_their_trials_differ(owners, is_exact):
    places = [("a", "x"), ("b", "x")]
    runs = {place: SimpleNamespace(path=place) for place in places}
    cells = {place: SimpleNamespace(scored_runs=[run]) for place, run in runs.items()}
    tuning = SimpleNamespace(owner_of=dict(zip(places, owners, strict=True)).get)
    comparison = SimpleNamespace(cells=cells, known_spread=None, tuning=tuning)
    hits = {places[0]: np.arange(50) < 40, places[1]: np.arange(50) < 45}
    found = uncertainty.exact_p(comparison, dict.fromkeys(places, 1), hits)
    assert found == (pytest.approx(binomtest(0, 5).pvalue) if is_exact else None)
