"""benchmarks/comparison.py: the direction of ratios, and the overview of all pages."""

import torch

from benchmarks import comparison
from benchmarks.comparison import Page, Row


def test_a_ratio_above_one_is_better_for_times_rates_and_scores():
    assert Row("x", "peer", 6.0, 2.0, "ms").ratio == 3
    assert Row("x", "peer", 2.0, 6.0, "images/s").ratio == 3
    assert Row("x", "target", 0.25, 0.75, "mAP").ratio == 3


def test_the_overview_lists_rows_that_have_a_target(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "__file__", str(tmp_path / "comparison.py"))
    rows = [Row("with target", "peer", 6.0, 2.0, "ms", 4), Row("without", "peer", 6.0, 2.0, "ms")]
    page = Page("# A title\n\n{rows}\n\n| second | table |\n|---|---|\n| 1 | 2 |\n", rows, ["a failure"])
    comparison.write_page(str(tmp_path / "part.py"), page, torch.device("cpu"))
    assert "with target (3.00, target 4); a failure" in (tmp_path / "part.md").read_text()
    assert comparison.overview().splitlines()[2:] == ["| [part](part.md) | with target | peer | 3.00 | 4 |"]


def test_contenders_alternate():
    order = []
    seconds = comparison.time_alternating([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert order == ["a", "b"] * 3
    assert len(seconds) == 2
