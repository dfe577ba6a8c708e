"""records/experiment.py: numbered directories, environment.json, README.md."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from records.experiment import (
    append_environment,
    describe_environment,
    new_experiment,
    read_environments,
    read_experiment_config,
    requeued_experiment,
    slurm_job,
    table,
    write_readme,
)
from training import TrainConfig


def test_the_error_for_a_root_that_is_not_a_folder_names_it_and_the_cure(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: .*--experiments"):
        new_experiment(tmp_path / "file")


def test_every_start_adds_its_own_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "detection.training", "config.yaml"])
    for hosts in (["node1"], ["node1", "node2"]):
        append_environment(tmp_path, describe_environment(hosts, torch.device("cpu")))
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["processes"] for start in starts] == [1, 2]
    assert torch.__version__.startswith(starts[0]["versions"]["torch"])
    assert starts[0]["command"] == "python -m detection.training config.yaml"


@pytest.mark.parametrize("content", ["", "{", '{"started": 1}', "[1]"])
def test_the_error_for_a_corrupt_environment_names_the_file(tmp_path, content):
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(ValueError, match=r"environment\.json: corrupt"):
        read_environments(tmp_path)


def test_the_error_for_a_missing_config_says_how_to_restore_it(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step_000000003.pt").touch()
    with pytest.raises(ValueError, match=r"config\.yaml: missing") as error:
        read_experiment_config(tmp_path, TrainConfig)
    assert f"--resume {tmp_path}" in str(error.value)


@pytest.fixture
def job(monkeypatch) -> dict[str, str]:
    """Set the environment of a Slurm job that trained in experiment_2 and was requeued once."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    settings = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "tower", "SLURM_RESTART_COUNT": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["/project/detection/training.py", "a.yaml"])
    return settings


@pytest.fixture
def root(job, tmp_path) -> Path:
    """Create experiment_1 to experiment_3; this job started the second."""
    for number, job_id in ((1, "6"), (2, "7"), (3, "8")):
        path = tmp_path / f"experiment_{number}"
        path.mkdir()
        environment = describe_environment(["node1"], torch.device("cpu"))
        append_environment(path, environment | {"slurm": environment["slurm"] | {"job_id": job_id, "restarts": 0}})
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "value", "program"),
    [
        ("SLURM_RESTART_COUNT", "0", "a.yaml"),
        ("SLURM_JOB_ID", "9", "a.yaml"),
        ("SLURM_CLUSTER_NAME", "cellar", "a.yaml"),
        ("SLURM_JOB_ID", "7", "b.yaml"),
    ],
)
def test_a_job_that_was_not_requeued_or_runs_a_different_command_starts_a_new_experiment(
    root, monkeypatch, setting, value, program
):
    monkeypatch.setenv(setting, value)
    monkeypatch.setattr(sys, "argv", ["/project/detection/training.py", program])
    assert requeued_experiment(root) is None


def test_a_requeued_job_finds_its_experiment_for_any_number_of_processes(root, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "-m", "detection.training", "a.yaml"])
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert requeued_experiment(root) == root / "experiment_2"


def test_the_job_has_the_name_that_slurm_shows(job, monkeypatch):
    assert slurm_job()["job"] == "7"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert slurm_job()["job"] == "5_0"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm_job() is None


def test_a_table_aligns_text_left_and_numbers_right():
    rows = [{"class": "RBC", "AP": 0.25, "n": 5}, {"class": "Platelets", "AP": None, "n": 12}]
    assert table(rows).splitlines() == [
        "class             AP   n",
        "RBC           0.2500   5",
        "Platelets  undefined  12",
    ]


def test_the_readme_shows_facts_scores_and_only_existing_pictures(tmp_path):
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
