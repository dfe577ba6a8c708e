"""runs.py: what a training command does before there is an experiment, and what it does not leave."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from detection.task import DetectionConfig, DetectionTask
from detection.training import main, parse_arguments
from engine.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint, save_checkpoint
from engine.command import RunError
from engine.config import dump_config, load_config
from engine.strict_yaml import ConfigError
from records.experiment import read_experiment_config
from records.trackers import metadata
from runs import TrainCommand, memory_need, train

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


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
    assert "6 classes, category ids 1 to 18, of which 12 are unused" in text
    assert "first step: total" in text
    assert "no experiment was made" in caplog.messages[-1]


def test_a_dry_run_that_takes_nearly_all_of_the_memory_warns(start, monkeypatch, caplog):
    monkeypatch.setattr("runs.memory_need", lambda device: (95.0, 100.0))
    start("--dry-run")
    assert "lower train.batch_size" in caplog.text


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


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_resolved_once_logged_and_recorded(start, monkeypatch, caplog, has_bf16, precision):
    monkeypatch.setattr("engine.compute.precision._cpu_has_bf16", lambda: has_bf16)
    caplog.set_level("INFO")
    start()
    experiment = start.folder / "experiments/experiment_1"
    assert read_experiment_config(experiment, DetectionConfig).train.precision == precision
    assert json.loads((experiment / "results.json").read_text())["precision"] == precision
    assert any(precision in message and "train.precision auto" in message for message in caplog.messages)
    assert not any("emulates" in message for message in caplog.messages)

    # Resumed on other hardware, by a config that says auto, the run keeps its precision.
    monkeypatch.setattr("engine.compute.precision._cpu_has_bf16", lambda: not has_bf16)
    start("--resume", str(experiment))
    assert read_experiment_config(experiment, DetectionConfig).train.precision == precision


def test_an_emulated_precision_works_and_is_reported_once_with_its_factor(start, monkeypatch, caplog):
    monkeypatch.setattr("engine.compute.precision._cpu_has_bf16", lambda: False)
    start("--dry-run", "train.precision=bf16")
    (warning,) = [message for message in caplog.messages if "emulates" in message]
    assert "train.precision bf16" in warning
    assert re.search(r"\d+\.\d times", warning)


def whole_run(start, *words):
    """The experiment of a whole run."""
    start(*words)
    return start.folder / "experiments/experiment_1"


def test_a_config_that_is_edited_while_the_run_trains_is_restored_and_kept_beside(start, monkeypatch):
    def evaluate(self, *arguments):
        Path("experiments/experiment_1/config.yaml").write_text("train: {epochs: 500}\n")
        return found(self, *arguments)

    found = DetectionTask.evaluate
    monkeypatch.setattr(DetectionTask, "evaluate", evaluate)
    experiment = whole_run(start)
    assert yaml.safe_load((experiment / "config.yaml").read_text())["train"]["epochs"] == 1
    assert (experiment / "config_edited.yaml").read_text() == "train: {epochs: 500}\n"
    assert "config.yaml was edited (now in config_edited.yaml)" in (experiment / "train.log").read_text()


def test_a_run_is_not_resumed_by_a_config_that_was_edited_since(start):
    experiment = whole_run(start)
    text = (experiment / "config.yaml").read_text()
    (experiment / "config.yaml").write_text(text.replace("epochs: 1\n", "epochs: 2\n"))
    with pytest.raises(ConfigError, match=r"train\.epochs was 1, is 2.*config\.yaml was edited: undo that"):
        main(parse_arguments(["--resume", str(experiment)]), CPU)


def test_a_run_is_resumed_on_copies_of_its_images_but_not_on_others(start, sample_root, tmp_path, caplog):
    caplog.set_level("INFO")
    experiment = whole_run(start)
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
    experiment = whole_run(start)
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
        main(parse_arguments(sys.argv[1:]), CPU)
    assert exit_.value.code == 2
    assert "go on with an experiment: --resume FOLDER" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(start, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("records.trackers.metadata.version", version)
    with pytest.raises(ValueError, match="wandb is not installed"):
        start("train.trackers=[wandb]")
    assert not list(start.folder.iterdir())


def test_on_the_cpu_a_process_needs_less_than_there_is():
    used, total = memory_need(CPU)
    assert 100 < used < total


@pytest.fixture
def trained(start):
    """Return the command line that resumes experiments/experiment_1, which has a config.yaml and a checkpoint."""
    folder = start.folder / "experiments/experiment_1"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/step_000000003.pt").touch()
    config = load_config(start.folder.parent / "config.yaml", (), DetectionConfig)
    (folder / "config.yaml").write_text(dump_config(config))

    return lambda *words: parse_arguments([*words, "--resume", "experiments/experiment_1"])


def test_more_epochs_for_a_run_are_refused_with_the_command_that_trains_them_from_its_weights(trained, start):
    with pytest.raises(ConfigError, match=r"train\.epochs was 1, is 100") as error:
        main(trained("train.epochs=100"), CPU)
    command = str(error.value).split("`")[1]
    assert command == (
        "python -m detection.training experiments/experiment_1/config.yaml train.epochs=100 model.weights=null "
        "model.start_from=experiments/experiment_1"
    )
    _, _, _, path, *overrides = command.split()
    config = load_config(path, overrides, DetectionConfig)  # it can be started
    assert (config.train.epochs, config.model.start_from) == (100, "experiments/experiment_1")


def test_a_changed_config_is_refused_with_the_command_that_names_it(trained, start):
    config = start.folder.parent / "config.yaml"
    with pytest.raises(ConfigError, match="batch_size was 4, is 8") as error:
        main(trained(str(config), "train.batch_size=8"), CPU)
    assert f"python -m detection.training {config} train.batch_size=8 model.weights=null" in str(error.value)


def test_a_task_that_cannot_start_from_a_run_names_a_new_one(trained):
    with pytest.raises(ConfigError) as error:
        train(TrainCommand(DetectionConfig, None, None, None), trained("train.epochs=100"), CPU)
    assert "start_from" not in str(error.value)
    assert "config.yaml train.epochs=100`" in str(error.value)


@pytest.mark.parametrize("root", ["~nosuchuser/x", '"a\\0b"', "x" * 300])
@pytest.mark.parametrize("command", ["detection", "classification", "diffusion"])
def test_a_root_that_can_be_no_path_is_one_line_that_names_the_field(run_in_process, start, command, root):
    import diffusion.training
    import train_clf_imagenet
    from detection import training

    config, module = {
        "detection": (start.folder.parent / "config.yaml", training),
        "classification": (ROOT / "configs/swin_slim_mnist.yaml", train_clf_imagenet),
        "diffusion": (ROOT / "configs/diffusion_mnist_small.yaml", diffusion.training),
    }[command]
    code, _, errors = run_in_process(module, config, f"data.root={root}")
    assert code == 2
    assert len(errors) == 1
    assert "data.root" in errors[0]


@pytest.mark.parametrize("field", ["model.weights", "model.start_from"])
@pytest.mark.parametrize("value", ["~nosuchuser/x.pt", '"a\\0b.pt"', "x" * 300 + ".pt", "."])
def test_weights_that_can_be_no_path_are_one_line_that_names_the_field(run_in_process, start, field, value):
    from detection import training

    code, _, errors = run_in_process(training, start.folder.parent / "config.yaml", f"{field}={value}")
    assert code == 2
    assert len(errors) == 1
    assert field in errors[0]


def test_a_dry_run_tells_the_recall_of_the_default_boxes(start, caplog):
    caplog.set_level("INFO")
    start("--dry-run", "loss.match_iou=0.95")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("default boxes: only" in text and "IoU >= 0.95" in text for text in warnings)
