"""benchmarks/comparison.py: which way a ratio goes, and what the overview reads back."""

import torch

from benchmarks import comparison
from benchmarks.comparison import Page, Row


def test_a_ratio_above_one_is_better_for_times_rates_and_scores():
    assert Row("x", "peer", 6.0, 2.0, "ms").ratio == 3
    assert Row("x", "peer", 2.0, 6.0, "images/s").ratio == 3
    assert Row("x", "asked", 0.25, 0.75, "mAP").ratio == 3


def test_the_overview_has_the_rows_of_which_something_is_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "__file__", str(tmp_path / "comparison.py"))
    rows = [Row("asked for", "peer", 6.0, 2.0, "ms", 4), Row("told", "peer", 6.0, 2.0, "ms")]
    page = Page("# A title\n\n{rows}\n\n| another | table |\n|---|---|\n| 1 | 2 |\n", rows, ["a failure"])
    comparison.write_page(str(tmp_path / "part.py"), page, torch.device("cpu"))
    assert "Short of what is asked: asked for (3.00 of 4); a failure." in (tmp_path / "part.md").read_text()
    assert comparison.overview().splitlines()[2:] == ["| [part](part.md) | asked for | peer | 3.00 | 4 |"]


def test_contenders_take_turns():
    order = []
    seconds = comparison.turn_by_turn([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert order == ["a", "b"] * 3
    assert len(seconds) == 2
