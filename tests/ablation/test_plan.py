"""Tests of ablation/plan.py: plans from finished runs, from pilots with one seed, and before any run."""

import csv
import io
import json
import re
from dataclasses import asdict

import pytest

from ablation import plan as command
from ablation.display.difference_tables import comparison_limits
from ablation.display.sentences import limits_of
from ablation.display.tables import to_csv
from ablation.plan import Reference, as_markdown, make_plan, parse_arguments
from tests.ablation.scheduling.test_jobs import GRID, write_grid

ENTRIES = [
    Reference("small", "detection", "mAP", 100, 3, 4, "a grid", seed_sd=0.02, image_se=0.04, same_cell=0.9,
              other_cell=0.8),
    Reference("large", "detection", "mAP", 5000, 15, 1, "a paper", seed_sd=0.0014),
]  # fmt: skip

TUNE = "tune: {trials: 2, optim.learning_rate: {log_uniform: [1e-4, 1e-2]}}\n"


@pytest.fixture(autouse=True)
def references(tmp_path, monkeypatch):
    path = tmp_path / "references.json"
    path.write_text(json.dumps([asdict(entry) for entry in ENTRIES]))
    monkeypatch.setattr(command, "REFERENCES", path)


def plan_of(*words: object):
    arguments = parse_arguments([*map(str, words), "--replicates", "200"])
    return make_plan(arguments.paths, arguments)


def text_of(*words: object) -> str:
    arguments = parse_arguments([*map(str, words), "--replicates", "200"])
    return as_markdown(make_plan(arguments.paths, arguments), arguments)


# ---- from finished runs ------------------------------------------------------------------------------------


def test_missing_runs_cost_the_median_device_hours_of_their_cell(experiments):
    for seed, seconds in enumerate((3600.0, 7200.0, 36_000.0)):
        experiments.add("slow", seed=seed, cost={"train_seconds": seconds, "processes": 2})
    experiments.add("fast", seed=0, cost={"train_seconds": 360.0, "processes": 1})
    experiments.add("fast", seed=1, cost={"train_seconds": None})
    plan = plan_of(*experiments.folder.iterdir())
    assert plan.new_runs(5) == {"slow x none": 2, "fast x none": 3}
    assert plan.device_hours(5) == pytest.approx(2 * 4 + 3 * 0.1)
    assert plan.device_hours(2) == 0
    assert plan.seeds == "2 to 3"
    assert plan.variances.degrees == 3


def test_a_cell_without_recorded_times_costs_the_median_of_the_other_cells(experiments):
    for row, seconds in (("a", 3600.0), ("b", 7200.0), ("c", None)):
        for seed in (0, 1):
            experiments.add(row, seed=seed, cost={"train_seconds": seconds, "processes": 1})
    assert plan_of(*experiments.folder.iterdir()).device_hours(3) == pytest.approx(1 + 2 + 1.5)


def test_a_small_difference_is_found_by_no_number_of_seeds_and_a_large_one_by_few(experiments):
    for row in ("a", "b"):
        for seed in (0, 1, 2):
            experiments.add(row, seed=seed, quality=0.6)
    paths = list(experiments.folder.iterdir())
    plan = plan_of(*paths)
    limit = plan.variances.detectable(float("inf"))
    assert "No number of seeds will do" in text_of(*paths, "--find", limit / 2)
    needed = plan.variances.seeds_needed(3 * limit)
    assert f"**{needed} seeds per cell** find" in text_of(*paths, "--find", 3 * limit)
    images = plan.variances.images_needed(limit / 2, 10)
    assert re.search(rf"\| 10 \| {images:,} \([\d.]+ times\) \| 14 \|", text_of(*paths, "--find", limit / 2))


def test_the_table_of_a_comparison_shows_the_same_detectable_differences_as_the_plan(grid):
    comparison = grid.compare()
    plan, table = plan_of(*sorted(grid.folder.iterdir())), comparison_limits(comparison)
    assert table.rows[0][0] == "2"
    assert table.rows[0][1] == f"{plan.variances.detectable():.4f}"
    assert table.bold == {(0, 1)}
    assert table.header[1:] == ["60 images", "120 images", "240 images"]
    assert limits_of(plan.variances) in table.notes
    (line, *_) = csv.DictReader(io.StringIO(to_csv(comparison)))
    assert sum(comparison.variances.shares) == pytest.approx(1)
    shares = [float(line[f"share_{part}"]) for part in ("images", "errors", "seeds")]
    assert (*shares, 0) == comparison.variances.shares
    assert "share_tuning" not in line


def test_a_known_spread_between_seeds_replaces_the_measured_one(grid):
    paths = list(grid.folder.iterdir())
    measured, known = plan_of(*paths), plan_of(*paths, "--seed-sd", "0.3")
    assert known.variances.seed == pytest.approx(0.3**2 - measured.variances.run_image)
    assert "--seed-sd" in known.warnings[-1]


def test_with_one_seed_per_cell_the_spread_is_that_of_the_nearest_reference(experiments):
    for row in ("a", "b"):
        experiments.add(row)
    plan = plan_of(*experiments.folder.iterdir())
    run_image = 0.04**2 * (1 - 0.9) * 100 / 60  # scaled from 100 images to 60
    assert plan.variances.run_image == pytest.approx(run_image)
    assert plan.variances.seed == pytest.approx(0.02**2 - 0.04**2 * (1 - 0.9))
    assert plan.seeds == ""
    assert "small" in plan.warnings[0]


def test_equal_scores_and_a_single_cell_are_reported(experiments):
    for row in ("a", "b"):
        for seed in (0, 1):
            experiments.add(row, seed=seed, quality=0.0)
    assert "same score" in text_of(*experiments.folder.iterdir(), "--find", "0.1")
    with pytest.raises(ValueError, match="nothing to plan from"):
        plan_of(*sorted(experiments.folder.iterdir())[:2])


def test_a_loss_is_planned_like_a_score(experiments):
    for name, loss in (("a", 0.1), ("b", 0.12)):
        for seed in (0, 1):
            path = experiments.add_generator(name, loss + 0.001 * seed, gflops=1.0)
            results = json.loads((path / "results.json").read_text()) | {"seed": seed}
            (path / "results.json").write_text(json.dumps(results))
    plan = plan_of(*experiments.folder.iterdir())
    assert plan.metric == "val_loss"
    assert plan.variances.detectable(10) > 0


# ---- before any run ----------------------------------------------------------------------------------------


def test_before_any_run_variances_come_from_the_nearest_references(tmp_path):
    grid = write_grid(tmp_path)  # three cells, two seeds
    plan = plan_of(grid, "--images", 4000, "--experiments", tmp_path / "none")
    image_variance = 0.04**2 * 100 / 4000  # "large" has no image noise, so "small" is scaled
    assert plan.variances.run_image == pytest.approx(0.1 * image_variance)
    assert plan.variances.seed == 0  # 0.0014**2 is less than run_image
    assert plan.variances.shared == pytest.approx(2 * (0.9 - 0.8) * image_variance)
    assert (plan.variances.tests, plan.variances.degrees, plan.seeds) == (2, 3, "2")


def test_before_any_run_the_luck_of_tuning_is_not_known(tmp_path):
    words = write_grid(tmp_path, GRID + TUNE), "--images", 4000, "--experiments", tmp_path / "none", "--find", 0.01
    plan = plan_of(*words)
    assert plan.variances.tuning == 0
    assert "luck of tuning is not included" in plan.warnings[-1]
    assert "without the trials" in text_of(*words)
    words = write_grid(tmp_path), *words[1:]
    assert "tuning" not in "".join(plan_of(*words).warnings)
    assert "without the trials" not in text_of(*words)
    assert plan.device_hours(3) is None
    assert plan.new_runs(3) == {"small x none": 3, "small x fpn": 3, "large x fpn": 3}


def test_before_any_run_options_override_the_references(tmp_path):
    words = (write_grid(tmp_path), "--images", 4000, "--experiments", tmp_path / "none", "--pairs")
    plan = plan_of(*words, "--seed-sd", "0.05", "--image-se", "0.02")
    assert plan.variances.run_image == pytest.approx(0.1 * 0.02**2)
    assert plan.variances.seed == pytest.approx(0.05**2 - 0.1 * 0.02**2)
    assert plan.variances.tests == 3
    chosen = plan_of(*words, "--reference", "small")
    assert chosen.variances.seed == pytest.approx(0.02**2 - 0.1 * 0.04**2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--images"),
        (("--images", "9"), "at least 10"),
        (("--images", "90", "--reference", "smal"), "did you mean 'small'"),
        (("--images", "90", "--baseline", "small x fnp"), "did you mean 'small x fpn'"),
    ],
)
def test_what_is_missing_before_any_run_is_named(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        plan_of(write_grid(tmp_path), "--experiments", tmp_path / "none", *words)


def test_options_for_plans_before_any_run_are_refused_with_finished_runs(grid):
    with pytest.raises(ValueError, match="--images"):
        plan_of(*grid.folder.iterdir(), "--images", "100")


@pytest.mark.parametrize("words", [("--find", "0"), ("--find", "x"), ("--seeds", "1,3"), ("--seeds", "a")])
def test_invalid_numbers_are_rejected(tmp_path, words):
    with pytest.raises(SystemExit):
        parse_arguments([str(write_grid(tmp_path)), *words])


def test_the_stored_references_name_measured_grids_and_published_spreads(monkeypatch):
    monkeypatch.undo()
    entries = {entry.name: entry for entry in command.read_references()}
    assert entries["bccd"].images == 72
    assert entries["coco_ssd300"].seed_sd == 0.0014
    assert entries["coco_ssd300"].image_se is None
    assert all(entry.image_se and 0 < entry.other_cell < entry.same_cell < 1
               for name, entry in entries.items() if name != "coco_ssd300")  # fmt: skip
