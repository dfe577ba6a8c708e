"""runs.py: sentences of an experiment's README."""

from runs import best_fact, commits_fact


def test_the_best_epoch_comes_with_a_warning_unless_it_is_the_last():
    line = {"epoch": 3, "mAP": 0.5}
    assert best_fact(line, "mAP", last_epoch=3) == "3 at mAP 0.5000, the last"
    assert best_fact(line, "mAP", last_epoch=9).startswith("3 at mAP 0.5000; not the figure to quote")
    assert best_fact(None, "mAP", last_epoch=9) == "none scored"


def test_every_commit_that_a_run_was_started_with_is_told_once_and_in_order():
    starts = [{"commit": name, "uncommitted_changes": name == "b"} for name in "aaba"]
    assert commits_fact(starts[:2]) == "commit a"
    assert commits_fact(starts) == "commits a, then b, with uncommitted changes"
    assert commits_fact([{"commit": None, "uncommitted_changes": False}]) == "commit unknown"
