"""runs.py: what a training command does before there is an experiment, and what it does not leave."""

import sys

import pytest
import torch
import yaml

from detection.training import main, parse_arguments
from engine.command import RunError
from engine.trackers import metadata
from runs import memory_need

CPU = torch.device("cpu")


@pytest.fixture
def start(sample_root, tmp_path, monkeypatch):
    """Trains the sample set as a command line with these words would, in an empty folder; returns the folder."""
    splits = ("train", "val")
    content = {
        "data": {"root": str(sample_root), "workers": 0}
        | {s: {"images": f"images/{s}", "annotations": f"annotations/instances_{s}.json"} for s in splits},
        "model": {"backbone": "ResNet18SlimBackbone_B", "neck": "none", "input_size": 96},
        "train": {"epochs": 1, "batch_size": 4},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["detection.training", str(config), *words])
        main(parse_arguments(sys.argv[1:]), CPU)

    run.folder = folder
    return run


def test_a_dry_run_tells_of_data_seconds_and_memory(start, caplog):
    caplog.set_level("INFO")
    start("--dry-run")
    text = caplog.text
    assert "6 classes, category ids 1 to 18, 12 of them unused" in text
    assert "first step: total" in text
    assert "no experiment was made" in caplog.messages[-1]


def test_a_dry_run_leaves_nothing(start):
    start("--dry-run")
    assert not list(start.folder.iterdir())


def test_a_dry_run_refuses_what_training_would(start):
    with pytest.raises(ValueError, match="batch_size 100"):
        start("--dry-run", "train.batch_size=100")


def test_a_batch_that_does_not_fit_the_memory_is_an_error_with_the_cure(start, monkeypatch):
    def losses(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("detection.task.DetectionTask.losses", losses)
    with pytest.raises(RunError, match=r"^train\.batch_size 4 does not fit the memory: lower it.*2\.00 GiB\.\)$"):
        start("--dry-run")


@pytest.mark.parametrize("words", [("--resume", "."), ("--experiment", ".")])
def test_a_dry_run_does_not_go_with_an_experiment(start, capsys, words):
    with pytest.raises(SystemExit) as exit_:
        start("--dry-run", *words)
    assert exit_.value.code == 2
    assert "--dry-run begins from a CONFIG" in capsys.readouterr().err


def test_a_folder_in_place_of_a_config_is_told_from_an_experiment_to_go_on_with(start, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["detection.training", "."])
    with pytest.raises(SystemExit) as exit_:
        main(parse_arguments(sys.argv[1:]), CPU)
    assert exit_.value.code == 2
    assert "go on with an experiment: --resume FOLDER" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(start, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("engine.trackers.metadata.version", version)
    with pytest.raises(ValueError, match="wandb is not installed"):
        start("train.trackers=[wandb]")
    assert not list(start.folder.iterdir())


def test_on_the_cpu_a_process_needs_less_than_there_is():
    used, total = memory_need(CPU)
    assert 100 < used < total
