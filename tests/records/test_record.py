"""records/record.py: the best epoch in an experiment's README."""

import pytest

from records.record import best_epoch

LINES = [{"epoch": 1}, {"epoch": 2, "s": 0.5}, {"epoch": 3, "s": 0.25}]


@pytest.mark.parametrize(
    ("lines", "lower_is_better", "expected"),
    [(LINES, True, "3 with s 0.2500, the last"), (LINES, False, "2 with s 0.5000; do not"), (LINES[:1], True, "none")],
)
def test_the_best_epoch_has_a_warning_unless_it_is_the_last(lines, lower_is_better, expected):
    assert best_epoch(lines, "s", lower_is_better).startswith(expected)
