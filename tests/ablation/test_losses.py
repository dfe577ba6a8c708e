"""Comparisons of runs whose score is a loss: lower is better."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation import plots
from ablation.cells import compare
from ablation.comparison import Comparison
from ablation.report import write_report
from ablation.tables import class_table, difference_table, score_table
from stats.bootstrap import image_weights, resampled_scores
from stats.image_statistics import Losses, load_statistics

DIFFICULTIES = {"small": 0.30, "large": 0.20}  # mean loss; large is better, and dearer


def write_run(path: Path, model: str, classification_writer) -> None:
    """A finished experiment of a task that records a loss for each image."""
    run = classification_writer(path, model, "random weights", gflops=1.0 if model == "small" else 3.0)
    ease = np.random.default_rng(0).normal(0, 0.05, 120)
    losses = DIFFICULTIES[model] + ease + np.random.default_rng([1, *model.encode()]).normal(0, 0.01, 120)
    labels = (np.arange(120) // 60).astype(np.int16)
    names = np.array(["cat", "dog"])
    Losses(np.array("val_loss"), np.arange(120).astype(str), names, labels, losses).save(path)
    results = run.results.model_dump() | {
        "task": "diffusion",
        "metric": "val_loss",
        "lower_is_better": True,
        "scores": {"val_loss": float(losses.mean())},
        "per_class": {name: {"val_loss": float(losses[labels == k].mean())} for k, name in enumerate(names.tolist())},
    }
    (path / "results.json").write_text(json.dumps(results))
    Image.new("L", (40, 40), 128).save(path / "samples.png")


@pytest.fixture(scope="module")
def comparison(classification_writer, tmp_path_factory) -> Comparison:
    """Of a small model and a large one, which is better; not to be changed."""
    folder = tmp_path_factory.mktemp("losses")
    for model in DIFFICULTIES:
        write_run(folder / model, model, classification_writer)
    return compare([folder / model for model in DIFFICULTIES], folder, None, False, 200, False)


def test_the_best_cell_has_the_lowest_loss(comparison):
    assert comparison.best.row == "large"
    table = score_table(comparison)
    assert table.title == "val_loss, one seed, lower is better"
    assert table.bold == {(1, 1)}


def test_the_difference_in_loss_is_found_with_its_interval(comparison):
    (difference,) = comparison.differences
    assert difference.interval.estimate == pytest.approx(-0.1, abs=0.01)
    assert difference.significant


def test_every_table_of_differences_says_that_below_zero_is_better(comparison):
    table = difference_table("Differences", comparison.differences, comparison.difference_in)
    assert table.header[1] == "difference in val_loss (below zero is better)"
    assert "Below zero is better." in comparison.conclusion
    drawing = plots.draw_differences(comparison.differences, {}, comparison.difference_in)
    assert drawing.axes[0].get_xlabel().endswith("(below zero is better)")


def test_small_losses_keep_their_digits(comparison):
    assert re.search(r"true difference of about 0\.00\d+ four times", comparison.conclusion)
    assert re.search(r"^0\.\d{4} \[", class_table(comparison).rows[0][1])


def test_the_loss_of_each_class_has_an_interval(comparison):
    interval = comparison.per_class["small", "random weights"]["dog"]
    assert interval.low < interval.estimate < interval.high


def test_resampled_losses_are_those_of_repeated_images(comparison):
    statistics = load_statistics(comparison.cells["small", "random weights"].runs[0].path)
    weights = image_weights(120, 5, seed=0)
    scores, by_class = resampled_scores(statistics, weights)
    for row, weight in enumerate(weights):
        repeated = np.repeat(np.arange(120), weight)
        assert scores["val_loss"][row] == pytest.approx(statistics.losses[repeated].mean())
        dogs = repeated[statistics.labels[repeated] == 1]
        assert by_class[row, 1] == pytest.approx(statistics.losses[dogs].mean())


def test_a_lower_loss_is_on_the_pareto_front(comparison):
    cells, looks = comparison.filled, list(plots.looks(comparison).values())
    for lower_is_better, front in ((True, 2), (False, 1)):  # cheap and worse, dear and better; or better in both
        drawing = plots.draw_costs([1, 3], cells, looks, "cost", "val_loss", False, lower_is_better)
        assert len(drawing.axes[0].lines[0].get_xdata()) == front


def test_the_report_says_what_is_better_and_shows_samples(comparison, tmp_path):
    write_report(tmp_path / "report.html", comparison)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Lower is better, and the lowest mean is bold" in text
    assert "further left and down is better" in text
    assert 'aria-label="samples, by cell"' in text
