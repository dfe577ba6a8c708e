"""runs.py: checks before training, dry runs, precision, and resuming."""

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ablation.cells import cells_of_experiments
from detection import evaluate
from detection.detector import load
from detection.network.anchors import ANCHOR_SCALES
from detection.network.backbones import build_backbone
from detection.task import DetectionConfig, DetectionTask
from detection.training import build_task, main, parse_arguments
from engine.checkpoint import CheckpointError
from engine.command import RunError
from engine.config import dump_config, load_config
from engine.strict_yaml import ConfigError, dump_yaml, read_yaml
from records.experiment import read_experiment_config
from records.trackers import metadata
from runs import TrainCommand, check_feasible, memory_usage, rehearse, train
from tests.test_training import OPTIM, PlaneTask, changed
from weights import publish

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


def recall_of_config(config: DetectionConfig) -> float:
    """Return the recall of the default boxes of a config on its training objects."""
    return build_task(config, from_checkpoint=True).anchor_fit.recall


@pytest.fixture
def start(sample_root, tmp_path, monkeypatch):
    """Return a function that runs a training command on the sample set, and returns its experiment directory."""
    splits = ("train", "val")
    content = {
        "data": {"root": str(sample_root), "workers": 0}
        | {s: {"images": f"images/{s}", "annotations": f"annotations/instances_{s}.json"} for s in splits},
        "model": {"backbone": "ResNet18SlimBackbone_B", "neck": "none", "input_size": 96},
        "train": {"epochs": 1, "batch_size": 4},
    }
    config = tmp_path / "config.yaml"
    config.write_text(dump_yaml(content))
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words):
        main(parse_arguments([str(config), *words]), CPU)
        return folder / "experiments/experiment_1"

    run.config, run.folder = config, folder
    run.recall = lambda *words: recall_of_config(load_config(config, words, DetectionConfig))
    return run


# ---- dry runs --------------------------------------------------------------------------------------------------


def test_a_dry_run_logs_the_data_and_warnings_and_writes_nothing(start, caplog):
    caplog.set_level("INFO")
    start("--dry-run", "loss.match_iou=0.95")
    assert "6 classes, category ids 1 to 18 (12 unused)" in caplog.text
    assert "first step: total" in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("default boxes: only" in text and "IoU >= 0.95" in text for text in warnings)
    assert not any("also training images" in text for text in warnings)
    assert "no experiment" in caplog.messages[-1]
    assert not list(start.folder.iterdir())


@pytest.mark.parametrize("words", [("--resume", "."), ("--experiment", ".")])
def test_a_dry_run_cannot_be_combined_with_an_experiment(start, capsys, words):
    with pytest.raises(SystemExit):
        start("--dry-run", *words)
    assert f"{words[0]}: not allowed with argument --dry-run" in capsys.readouterr().err


def test_rehearse_takes_two_steps_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = PlaneTask()
    before = task.model[0].weight.detach().clone()
    assert len(rehearse(task, CPU)) == task.calls == 2
    assert not torch.equal(task.model[0].weight, before)
    assert not list(tmp_path.iterdir())


def out_of_gpu_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


@pytest.mark.parametrize("losses", [lambda *_: torch.empty(2**60), out_of_gpu_memory])
def test_a_batch_that_does_not_fit_in_memory_is_an_error_with_the_cure(losses):
    task = PlaneTask()
    task.losses = losses
    with pytest.raises(RunError, match=r"^train\.batch_size 4 .* lower it.*allocate .*$"):
        rehearse(task, CPU)


def test_memory_usage_on_the_cpu_is_below_its_limit():
    used, total = memory_usage(CPU)
    assert 100 < used < total


# ---- checks before training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"accumulation_steps": 6}, r"train\.accumulation_steps 6: an epoch has only 5 batches"),
        ({"batch_norm": "sync"}, r"train\.batch_norm sync: works on GPUs only"),
        ({"batch_size": 1}, r"train\.batch_size 1: BatchNorm needs at least 2 images"),
        ({"batch_size": 23}, r"batch_size 23"),
    ],
)
def test_a_config_that_cannot_be_trained_is_rejected(tmp_path, fields, named):
    task = PlaneTask(changed(**fields))
    task.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    with pytest.raises(ValueError, match=named):
        check_feasible(task, tmp_path, CPU)


def test_one_image_per_batch_is_enough_if_all_batch_norms_are_frozen(tmp_path):
    task = PlaneTask(changed(batch_size=1))
    task.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8).eval(), nn.Linear(8, 1))
    check_feasible(task, tmp_path, CPU)


def test_a_ratio_for_a_task_without_a_trunk_is_rejected_with_the_cure(tmp_path):
    task = PlaneTask(optim=OPTIM.model_copy(update={"backbone_lr_ratio": 0.1}))
    with pytest.raises(ValueError, match=r"^optim\.backbone_lr_ratio 0\.1: .*set it to 1$"):
        check_feasible(task, tmp_path, CPU)
    task.trunk = task.model[0]
    check_feasible(task, tmp_path, CPU)


def test_a_dry_run_with_a_frozen_trunk_warns_that_the_ratio_has_no_effect(start, tmp_path, caplog):
    torch.save(build_backbone("ResNet18SlimBackbone_B").trunk.state_dict(), tmp_path / "trunk.pth")
    start("--dry-run", f"model.weights={tmp_path}/trunk.pth", "model.freeze=trunk", "optim.backbone_lr_ratio=0.1")
    assert any("optim.backbone_lr_ratio 0.1" in message and "frozen" in message for message in caplog.messages)


def test_the_ratio_is_logged_at_the_start_and_recorded(start):
    experiment = start("optim.backbone_lr_ratio=0.25", "optim.learning_rate=0.8", "optim.reference_batch_size=4")
    log = (experiment / "train.log").read_text()
    assert "peak learning rate 0.8" in log
    assert "trunk 0.2 (optim.backbone_lr_ratio 0.25)" in log
    recipe = json.loads((experiment / "results.json").read_text())["facts"]["Recipe"]
    assert "learning rate 0.8 (trunk: 0.25 times" in recipe


def test_a_disk_without_space_for_two_checkpoints_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(CheckpointError, match="no space left for two checkpoints"):
        check_feasible(PlaneTask(), tmp_path / "not/yet", CPU)
    assert not (tmp_path / "not").exists()


def test_a_tracker_that_is_not_installed_is_an_error_before_anything_is_written(start, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("records.trackers.metadata.version", version)
    with pytest.raises(ValueError, match="wandb is not installed"):
        start("train.trackers=[wandb]")
    assert not list(start.folder.iterdir())


@pytest.mark.parametrize("path", ["~nosuchuser/x", '"a\\0b"', "x" * 300])
@pytest.mark.parametrize(
    ("task", "config", "field"),
    [
        ("detection", None, "data.root"),
        ("detection", None, "model.weights"),
        ("detection", None, "model.start_from"),
        ("classification", ROOT / "configs/swin_slim_mnist.yaml", "data.root"),
    ],
)
def test_an_unusable_path_is_a_one_line_error_that_names_the_field(run_in_process, start, task, config, field, path):
    module = importlib.import_module(f"{task}.training")
    code, _, errors = run_in_process(module, config or start.config, f"{field}={path}")
    assert code == 2
    (error,) = errors
    assert field in error


def test_a_folder_instead_of_a_config_is_an_error_that_names_the_option_to_resume(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(["."])
    assert exit_.value.code == 2
    assert "--resume FOLDER" in capsys.readouterr().err


# ---- precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_resolved_once_and_recorded(start, monkeypatch, caplog, has_bf16, precision):
    monkeypatch.setattr("engine.compute.precision._cpu_has_bf16", lambda: has_bf16)
    caplog.set_level("INFO")
    experiment = start()
    assert read_experiment_config(experiment, DetectionConfig).train.precision == precision
    assert json.loads((experiment / "results.json").read_text())["precision"] == precision
    assert any(precision in message and "train.precision auto" in message for message in caplog.messages)
    assert not any("emulates" in message for message in caplog.messages)

    # A run that is resumed on different hardware keeps its precision, even if its config says auto.
    monkeypatch.setattr("engine.compute.precision._cpu_has_bf16", lambda: not has_bf16)
    start("--resume", str(experiment))
    assert read_experiment_config(experiment, DetectionConfig).train.precision == precision


def test_an_emulated_precision_causes_one_warning(start, monkeypatch, caplog):
    monkeypatch.setattr("engine.compute.precision._cpu_has_bf16", lambda: False)
    start("--dry-run", "train.precision=bf16")
    assert [message[:20] for message in caplog.messages if "emulates" in message] == ["train.precision bf16"]


# ---- fitted default boxes ----------------------------------------------------------------------------------------


@pytest.fixture
def fitted(start):
    """Train with fitted default boxes. Return the experiment, and the scales in its config."""
    experiment = start("model.anchor_scales=auto")
    return experiment, read_yaml(experiment / "config.yaml")[0]["model"]["anchor_scales"]


@pytest.fixture
def cannot_fit(monkeypatch):
    """Make fitting the default boxes an error."""

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr("detection.task.fit_scales", fail)


def test_fitted_scales_are_recorded(start, fitted):
    experiment, scales = fitted
    assert len(scales) == 7
    fit = json.loads((experiment / "results.json").read_text())["default_boxes"]
    assert fit["scales"] == scales
    presets = [start.recall(f"model.anchor_scales={name}") for name in ANCHOR_SCALES]
    assert fit["recall"] == start.recall(f"model.anchor_scales={scales}") >= max(presets)
    for name in ("README.md", "train.log"):
        assert str(scales) in (experiment / name).read_text()


def test_a_resumed_run_keeps_its_scales(start, fitted, cannot_fit):
    experiment, scales = fitted
    original = [str(start.config), "model.anchor_scales=auto"]
    for words in (["--resume"], [*original, "--resume"], [*original, "--experiment"]):
        (experiment / "results.json").unlink()
        main(parse_arguments([*words, str(experiment)]), CPU)
        assert json.loads((experiment / "results.json").read_text())["default_boxes"]["scales"] == scales
        assert read_yaml(experiment / "config.yaml")[0]["model"]["anchor_scales"] == scales
    with pytest.raises(ConfigError, match=r"model\.anchor_scales was \[0\..*\], is 'ssd'"):
        start("--resume", str(experiment))


def test_a_run_with_a_preset_is_not_resumed_with_fitted_scales(start):
    experiment = start()
    with pytest.raises(ConfigError, match=r"model\.anchor_scales was 'ssd', is 'auto'"):
        start("model.anchor_scales=auto", "--resume", str(experiment))


def test_runs_that_differ_only_in_their_seed_have_the_same_scales_and_share_a_cell(start, fitted):
    experiment, _ = fitted
    start("model.anchor_scales=auto", "train.seed=1")
    (cell,) = cells_of_experiments([experiment, experiment.parent / "experiment_2"]).values()
    assert [run.seed for run in cell.runs] == [0, 1]


def test_a_detector_with_fitted_scales_is_scored_loaded_and_published_with_them(fitted, cannot_fit, tmp_path):
    experiment, scales = fitted
    evaluate.main(evaluate.parse_arguments([str(experiment)]), CPU)
    (row,) = json.loads((experiment / "test.json").read_text())["settings"]
    scores = json.loads((experiment / "results.json").read_text())["scores"]
    assert {name: row[name] for name in scores} == scores
    detector = load(experiment, "cpu")
    assert list(detector.model.anchor_scales) == scales
    publish.main(publish.parse_arguments([str(experiment), "--output", str(tmp_path / "published")]), CPU)
    published = load(tmp_path / "published", "cpu")
    assert torch.equal(published.model.anchors_cxcywh, detector.model.anchors_cxcywh)


# ---- resuming ----------------------------------------------------------------------------------------------------


def test_a_config_that_is_edited_during_training_is_restored_and_the_edit_is_kept(start, monkeypatch):
    def edit_and_evaluate(self, *arguments):
        Path("experiments/experiment_1/config.yaml").write_text("train: {epochs: 500}\n")
        return evaluate(self, *arguments)

    evaluate = DetectionTask.evaluate
    monkeypatch.setattr(DetectionTask, "evaluate", edit_and_evaluate)
    experiment = start()
    assert read_yaml(experiment / "config.yaml")[0]["train"]["epochs"] == 1
    assert (experiment / "config_edited.yaml").read_text() == "train: {epochs: 500}\n"
    assert "config.yaml was edited" in (experiment / "train.log").read_text()


def test_a_run_is_not_resumed_with_an_edited_config(start):
    experiment = start()
    text = (experiment / "config.yaml").read_text()
    (experiment / "config.yaml").write_text(text.replace("epochs: 1\n", "epochs: 2\n"))
    with pytest.raises(ConfigError, match=r"train\.epochs was 1, is 2.*undo the edit of its config\.yaml"):
        main(parse_arguments(["--resume", str(experiment)]), CPU)


def test_a_run_is_resumed_on_copies_of_its_images_but_not_on_different_images(start, sample_root, tmp_path):
    experiment = start()
    copy = shutil.copytree(sample_root, tmp_path / "copy")
    (experiment / "results.json").unlink()
    start("--resume", str(experiment), f"data.root={copy}")
    assert (experiment / "results.json").is_file()
    first, second, *_ = sorted((copy / "images/train").iterdir())
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match=r"different data: training images '.*', now '.*'"):
        start("--resume", str(experiment), f"data.root={copy}")


@pytest.fixture
def trained(start):
    """Return a function that parses a command line to resume experiment_1, which has a config.yaml and a checkpoint."""
    folder = start.folder / "experiments/experiment_1"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/step_000000003.pt").touch()
    (folder / "config.yaml").write_text(dump_config(load_config(start.config, (), DetectionConfig)))
    return lambda *words: parse_arguments([*words, "--resume", "experiments/experiment_1"])


def test_more_epochs_for_a_run_are_an_error_with_the_command_to_train_from_its_weights(trained):
    with pytest.raises(ConfigError, match=r"train\.epochs was 1, is 100") as error:
        main(trained("train.epochs=100"), CPU)
    command = str(error.value).split("`")[1]
    assert command == (
        "python -m detection.training experiments/experiment_1/config.yaml train.epochs=100 model.weights=null "
        "model.start_from=experiments/experiment_1"
    )


def test_the_suggested_command_has_no_weights_if_the_task_cannot_start_from_a_run(trained):
    with pytest.raises(ConfigError) as error:
        train(TrainCommand(DetectionConfig, None, None, None), trained("train.epochs=100"), CPU)
    assert "start_from" not in str(error.value)
    assert "config.yaml train.epochs=100`" in str(error.value)
