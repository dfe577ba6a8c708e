"""detection/prepare/processes.py: how many processes share the work."""

import pytest

from detection.prepare import processes


@pytest.mark.parametrize(("cores", "count"), [(0.5, 1), (2.9, 2)])
def test_there_is_a_process_for_each_whole_core_and_one_at_least(monkeypatch, cores, count):
    monkeypatch.setattr(processes, "usable_cores", lambda: cores)
    assert processes.usual_count() == count
