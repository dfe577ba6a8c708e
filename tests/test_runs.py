"""runs.py: what a training command does before there is an experiment, and what it does not leave."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from detection.task import DetectionTask
from detection.training import COMMAND
from engine.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint, save_checkpoint
from engine.command import RunError
from engine.storage.strict_yaml import ConfigError
from engine.trackers import metadata
from runs import memory_need, train

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
        train(COMMAND, CPU)

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


def trained(start, *words):
    """The experiment of a whole run."""
    start(*words)
    return start.folder / "experiments/experiment_1"


def test_a_config_that_is_edited_while_the_run_trains_is_restored_and_kept_beside(start, monkeypatch):
    def evaluate(self, *arguments):
        Path("experiments/experiment_1/config.yaml").write_text("train: {epochs: 500}\n")
        return found(self, *arguments)

    found = DetectionTask.evaluate
    monkeypatch.setattr(DetectionTask, "evaluate", evaluate)
    experiment = trained(start)
    assert yaml.safe_load((experiment / "config.yaml").read_text())["train"]["epochs"] == 1
    assert (experiment / "config_edited.yaml").read_text() == "train: {epochs: 500}\n"
    assert "config.yaml was edited (now in config_edited.yaml)" in (experiment / "train.log").read_text()


def test_a_run_is_not_resumed_by_a_config_that_was_edited_since(start, monkeypatch):
    experiment = trained(start)
    text = (experiment / "config.yaml").read_text()
    (experiment / "config.yaml").write_text(text.replace("epochs: 1\n", "epochs: 2\n"))
    monkeypatch.setattr(sys, "argv", ["detection.training", "--resume", str(experiment)])
    with pytest.raises(ConfigError, match=r"train\.epochs was 1, is 2.*/config\.yaml was edited: undo that"):
        train(COMMAND, CPU)


def test_a_run_is_resumed_on_copies_of_its_images_but_not_on_others(start, sample_root, tmp_path, caplog):
    caplog.set_level("INFO")
    experiment = trained(start)
    copy = shutil.copytree(sample_root, tmp_path / "copy")
    (experiment / "results.json").unlink()
    start("--resume", str(experiment), f"data.root={copy}")
    first, second, *_ = sorted((copy / "images/train").iterdir())
    second.write_bytes(first.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"made on other data: training images '.*', now '.*'\. Resume on the same"
    ):
        start("--resume", str(experiment), f"data.root={copy}")


def test_a_checkpoint_of_before_images_were_identified_is_resumed(start):
    experiment = trained(start)
    path = newest_checkpoint(experiment / "checkpoints")
    state = load_checkpoint(path)
    for half in ("training", "validation"):
        del state["data"][f"{half} images"]
    save_checkpoint(path, state)
    (experiment / "results.json").unlink()
    start("--resume", str(experiment))
    assert (experiment / "results.json").is_file()


def test_validation_images_that_are_training_images_are_warned_of_at_the_start(start, caplog):
    start("--dry-run", "data.val.images=images/train", "data.val.annotations=annotations/instances_train.json")
    assert "12 of 12 validation images are also training images" in caplog.text


def test_halves_that_share_nothing_are_not_warned_of(start, caplog):
    start("--dry-run")
    assert "also training images" not in caplog.text


@pytest.mark.parametrize("words", [("--resume", "."), ("--experiment", ".")])
def test_a_dry_run_does_not_go_with_an_experiment(start, capsys, words):
    with pytest.raises(SystemExit) as exit_:
        start("--dry-run", *words)
    assert exit_.value.code == 2
    assert "--dry-run begins from a CONFIG" in capsys.readouterr().err


def test_a_folder_in_place_of_a_config_is_told_from_an_experiment_to_go_on_with(start, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["detection.training", "."])
    with pytest.raises(SystemExit) as exit_:
        train(COMMAND, CPU)
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
