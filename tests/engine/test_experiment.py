"""engine/experiment.py: numbering, environment, front page."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engine.experiment import (
    append_environment,
    describe_environment,
    is_running,
    new_experiment,
    occupied,
    write_readme,
)

ROOT = Path(__file__).parent.parent.parent
HOLD = "import sys, time, pathlib; from engine.experiment import occupied\n"
HOLD += "with occupied(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def other_run(tmp_path):
    """Another process that is at work in tmp_path."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_two_runs_cannot_be_at_work_in_one_experiment(tmp_path, other_run):
    assert is_running(tmp_path)
    with pytest.raises(ValueError, match="another process is at work in it"), occupied(tmp_path):
        pass


def test_a_run_that_was_killed_is_no_longer_running(tmp_path, other_run):
    other_run.kill()
    other_run.wait()
    assert not is_running(tmp_path)


def test_an_experiment_that_nobody_works_in_is_not_running(tmp_path):
    assert not is_running(tmp_path)
    with occupied(tmp_path):
        pass
    assert not is_running(tmp_path)


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
    for hosts in (["node1"], ["node1", "node2"]):
        append_environment(tmp_path, describe_environment(hosts, torch.device("cpu")))
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
