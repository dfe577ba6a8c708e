"""The command classification.training: record, exact resumption, several processes, grids; train_clf_imagenet.py."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_clf_imagenet
from classification import training
from detection.coco.annotations import read_split
from detection.task import DetectionConfig, DetectionTask
from engine.checkpoint import list_checkpoints, load_checkpoint
from engine.config import load_config
from records.metrics import read_metrics
from stats.image_statistics import load_statistics

ROOT = Path(__file__).parent.parent.parent
FIRST_STEP = re.compile(r"first step: total (\S+), classification \S+, gradient norm (\S+)")


@pytest.fixture
def train(run_in_process, tmp_path):
    """Return a function that trains in this process and returns the new experiment."""

    def run(*words, folder=tmp_path) -> Path:
        code, _, errors = run_in_process(training, *words, "--experiments", folder)
        assert code == 0, errors
        return max(folder.iterdir(), key=lambda path: int(path.name.partition("_")[2]))

    return run


def test_a_run_writes_its_complete_record(experiment):
    names = {path.name for path in experiment.iterdir()}
    assert names == {
        "README.md", "config.yaml", "environment.json", "inputs.json", "train.log", "metrics.jsonl",
        "curves.png",
        "results.json", "image_statistics.npz", "predictions.csv", "confusion.png", "examples.png",
        "checkpoints", "running.lock", "status.json",
    }  # fmt: skip
    record = json.loads((experiment / "results.json").read_text())
    assert record["task"] == "classification"
    assert record["variant"] == {"model": "swin_slim", "position": "rel"}
    assert record["protocol"]["images"] == 14
    assert record["per_class"]["tench"]["images"] == 2
    assert read_metrics(experiment)[-1]["top1"] == record["scores"]["top1"] == load_statistics(experiment).hits.mean()
    lines = list(csv.DictReader((experiment / "predictions.csv").open()))
    assert [line["image"] for line in lines][:4] == ["black/0.png", "black/1.png", "black/2.png", "blue/0.png"]
    assert sum(line["true"] == line["guess_1"] for line in lines) == round(14 * record["scores"]["top1"])
    readme = (experiment / "README.md").read_text()
    assert "](confusion.png)" in readme
    assert all(f"- **{label}**: {sentence}\n" in readme for label, sentence in record["facts"].items())
    assert record["facts"]["Again"] == f"`python -m classification.training {experiment}/config.yaml`"


def test_colours_are_learned_and_validating_on_training_images_is_reported(config_path, train):
    experiment = train(config_path, "train.epochs=12", "train.eval_every_epochs=12", "data.val=train")
    assert json.loads((experiment / "results.json").read_text())["scores"]["top1"] > 0.9
    assert "validation images are also training images" in (experiment / "train.log").read_text()


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(experiment, run_in_process, tmp_path):
    copy = shutil.copytree(experiment, tmp_path / "experiment_1")
    *_, middle, last = list_checkpoints(copy / "checkpoints")
    last.unlink()
    code, output, _ = run_in_process(training, "--resume", copy)
    assert code == 0
    assert f"resumed after step {load_checkpoint(middle)['step']}" in output
    uninterrupted, resumed = load_checkpoint(experiment / "checkpoints" / last.name), load_checkpoint(last)
    assert all(torch.equal(uninterrupted["model"][name], resumed["model"][name]) for name in uninterrupted["model"])
    assert (copy / "predictions.csv").read_text() == (experiment / "predictions.csv").read_text()


def test_the_first_step_depends_only_on_the_global_batch_size(config_path, train, tmp_path):
    steps = []
    for processes, batch, accumulation in ((1, 8, 1), (1, 4, 2), (2, 4, 1), (2, 2, 2)):
        words = [config_path, f"train.batch_size={batch}", f"train.accumulation_steps={accumulation}",
                 "train.epochs=1", "model.drop_path_rate=0.0"]  # fmt: skip
        folder = tmp_path / f"{processes}-{accumulation}"
        if processes == 1:
            train(*words, folder=folder)
        else:
            launch(*words, "--experiments", folder, module="classification.training", processes=processes)
        log = (folder / "experiment_1/train.log").read_text()
        steps.append([float(value) for value in FIRST_STEP.search(log).groups()])
    for step in steps[1:]:
        assert step == pytest.approx(steps[0], rel=1e-5)


def launch(*words: object, module: str, processes: int) -> None:
    """Run a command in several processes on the CPU, with one thread each: sums depend on the number of threads."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", module)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_detectors_trunk_starts_from_a_trained_classifier(experiment, sample_root):
    overrides = [
        f"data.root={sample_root}", f"model.weights={experiment}", "model.backbone=SwinSlimBackbone_B",
        "model.input_size=96",
    ]  # fmt: skip
    config = load_config(ROOT / "configs/quickstart.yaml", overrides, DetectionConfig)
    task = DetectionTask(config, None, read_split(config.data, "val"))
    trained = load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1])["ema"]["weights"]
    trunk = task.model.backbone.trunk.state_dict()
    assert len(trunk) > 100
    assert all(torch.equal(weight, trained[name]) for name, weight in trunk.items())
    assert task.initial_weights.name == str(experiment)
    assert task.initial_weights.file == str(list_checkpoints(experiment / "checkpoints")[-1])


def test_a_grid_of_classifiers_is_trained_and_compared(config_path, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "task: classification.training\nseeds: [0]\noverrides: [train.epochs=1]\n"
        f"rows: [{{name: swin_slim, config: {config_path}}}]\n"
        "columns: [{name: none, overrides: [model.position=none]}, {name: abs, overrides: [model.position=abs]}]\n"
    )
    folder = tmp_path / "experiments"
    for words in (("run", grid), ("table", grid, "--columns", "top5")):
        done = subprocess.run(
            [sys.executable, "-m", "ablation.grid", *map(str, words), "--experiments", str(folder)],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "### top1, one seed" in done.stdout
    assert "swin_slim x abs - swin_slim x none" in done.stdout


@pytest.mark.parametrize("action", ["training", "evaluate", "predict"])
def test_train_clf_imagenet_runs_each_command(run_in_process, action):
    words = [] if action == "training" else [action]
    code, output, _ = run_in_process(train_clf_imagenet, *words, "--help")
    assert code == 0
    assert f"example: python -m classification.{action}" in output
