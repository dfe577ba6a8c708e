"""engine/experiment.py: numbering, environment, front page."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.experiment import append_environment, describe_environment, new_experiment, write_readme


def test_numbers_go_on_after_the_highest(tmp_path):
    (tmp_path / "experiment_9").mkdir()
    (tmp_path / "notes").mkdir()
    assert new_experiment(tmp_path).name == "experiment_10"


def test_starts_at_the_same_instant_never_share_a_directory(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda _: new_experiment(tmp_path / "experiments"), range(64)))
    assert len(set(paths)) == 64


def test_a_root_that_is_no_folder_is_named_with_the_cure(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: no experiment can be made there .* see --experiments"):
        new_experiment(tmp_path / "file")


def test_every_start_adds_its_own_environment(tmp_path):
    for processes in (1, 2):
        append_environment(tmp_path, describe_environment(processes, torch.device("cpu")))
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["processes"] for start in starts] == [1, 2]
    assert torch.__version__.startswith(starts[0]["versions"]["torch"])
    assert "pytest" in starts[0]["command"]


def test_front_page_shows_facts_scores_and_only_existing_pictures(tmp_path):
    (tmp_path / "curves.png").touch()
    write_readme(
        tmp_path,
        "title",
        {"Model": "x"},
        {"mAP": 0.25, "AP_large": None},
        {"curves.png": "c", "none.png": "n"},
    )
    text = (tmp_path / "README.md").read_text()
    assert "| 0.2500 | undefined |" in text
    assert "- **Model**: x" in text
    assert "![c](curves.png)" in text
    assert "none.png" not in text
