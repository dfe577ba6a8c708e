"""Tests of comparisons whose score is a loss: lower is better."""

import re

import pytest

from ablation.comparison import Comparison
from ablation.display import plots
from ablation.display.difference_tables import difference_table
from ablation.display.report import write_report
from ablation.display.sentences import conclusion_of
from ablation.display.tables import class_table, score_table


@pytest.fixture(scope="module")
def comparison(new_experiments) -> Comparison:
    """Return a comparison of a small model and a large one that is better and costs more. Read-only."""
    experiments = new_experiments()
    experiments.add_generator("small", 0.30, gflops=1)
    experiments.add_generator("large", 0.20, gflops=3)
    return experiments.compare()


def test_the_best_cell_has_the_lowest_loss(comparison):
    assert comparison.best.row == "large"
    table = score_table(comparison)
    assert table.title == "val_loss, one seed, lower is better"
    assert table.bold == {(1, 1)}


def test_a_negative_difference_in_loss_is_reported_as_an_improvement(comparison):
    (difference,) = comparison.differences
    assert difference.interval.estimate == pytest.approx(-0.1, abs=0.01)
    assert difference.is_significant
    table = difference_table("Differences", comparison.differences, comparison)
    assert table.header[1] == "difference in val_loss (negative is better)"
    conclusion = " ".join(conclusion_of(comparison))
    assert "Lower is better" in conclusion
    assert re.search(r"true difference of about 0\.00\d+ would", conclusion)
    assert re.search(r"^0\.\d{4} \[", class_table(comparison).rows[0][1])


def test_a_lower_loss_is_on_the_pareto_front(comparison):
    costs = {("small", "random weights"): 1, ("large", "random weights"): 3}
    for more_is_better, front in ((False, 2), (True, 1)):  # large is better and costs more; or large is better in both
        drawing = plots.draw_costs(comparison, costs, "cost", more_is_better)
        assert len(drawing.axes[0].lines[0].get_xdata()) == front


def test_the_report_says_that_lower_is_better_and_shows_samples(comparison, tmp_path):
    write_report(tmp_path / "report.html", comparison)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Lower is better, and the lowest mean is bold" in text
    assert "further left and down is better" in text
    assert 'aria-label="samples, by cell"' in text
