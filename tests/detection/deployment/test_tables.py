"""detection/deployment/tables.py: what a session prints."""

import os
from pathlib import Path

import numpy as np

from detection.deployment.programs import Times
from detection.deployment.tables import conditions_line, ratio_rows, short_names
from detection.deployment.timing import Cell

ONE, TWO = Path("one"), Path("two")


def test_experiments_are_named_by_their_folders():
    assert short_names([Path("a/experiment_1"), Path("b/experiment_2")]) == {
        Path("a/experiment_1"): "experiment_1",
        Path("b/experiment_2"): "experiment_2",
    }


def test_equal_names_of_folders_get_the_parents_that_tell_them_apart():
    paths = [Path("x/a/run"), Path("x/b/run"), Path("y/b/run"), Path("x/other")]
    assert list(short_names(paths).values()) == ["a/run", "x/b/run", "y/b/run", "other"]


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_names([Path()]) == {Path(): tmp_path.name}


def test_the_line_above_the_tables_names_the_conditions():
    cores = os.cpu_count()
    session = {"device": "AMD EPYC", "precision": "bf16", "threads": 1, "load": 1.5 * cores, "power": None}
    expected = "AMD EPYC, bf16, 1 thread, load: 1.5 processes per core, power: unknown"
    assert conditions_line(session) == expected
    line = conditions_line(session | {"load": None, "power": "300 W", "threads": 2})
    assert all(part in line for part in ("2 threads", "load unknown", "300 W"))


def test_ratios_are_to_the_same_program_and_batch_of_the_first_experiment():
    noise = np.exp(np.random.default_rng(0).normal(0, 0.001, 100))
    series = {
        name: [Times(time, 0.0, time * each + 5.0, 5.0) for each in noise] for name, time in (("a", 1.0), ("b", 1.1))
    }
    cells = {
        Cell(ONE, "eager", 1): series["a"],
        Cell(TWO, "eager", 1): series["b"],
        Cell(TWO, "compiled", 1): series["a"],
        Cell(TWO, "eager", 8): series["a"],
    }
    (row,) = ratio_rows(cells, ONE, {ONE: "x/one", TWO: "x/two"})
    assert (row["experiment"], row["program"], row["batch"], row["verdict"]) == ("x/two", "eager", 1, "slower")
    assert row["ratio"].startswith("1.100 (")
