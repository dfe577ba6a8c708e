"""The command as users start it: training on one process and on several, evaluating, predicting."""

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from classification.classifier import load_classifier
from classification.data import read_folders
from detection import load as load_detector
from engine.checkpoint import list_checkpoints, load_checkpoint
from engine.config import load_config
from records.metrics import read_metrics
from stats.image_statistics import load_statistics

ROOT = Path(__file__).parent.parent.parent
FIRST_STEP = re.compile(r"first step: total (\S+), classification \S+, gradient norm (\S+)")


def run(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess:
    """Start the command as a user does, on the CPU; one thread, since sums depend on their number."""
    launcher = ["-m", "engine.launch", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [os.environ["PYTHON_EXEC"], *launcher, "-m", "train_clf_imagenet", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def train(config_path: Path, experiments: Path, *overrides: str, processes: int = 1) -> Path:
    """A finished run's directory."""
    done = run(config_path, *overrides, "--experiments", experiments, processes=processes)
    assert done.returncode == 0, done.stderr
    return max(experiments.iterdir(), key=lambda path: int(path.name.partition("_")[2]))


@pytest.fixture(scope="module")
def experiment(config_path, tmp_path_factory) -> Path:
    return train(config_path, tmp_path_factory.mktemp("experiments"))


def test_a_run_leaves_its_whole_record(experiment, colours_root):
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
    assert "![Which classes were taken for which](confusion.png)" in (experiment / "README.md").read_text()


def test_colours_are_learned(config_path, tmp_path):
    experiment = train(config_path, tmp_path, "train.epochs=12", "train.eval_every_epochs=12")
    scores = json.loads((experiment / "results.json").read_text())["scores"]
    assert scores["top1"] > 0.9


def test_a_resumed_run_ends_as_the_uninterrupted_one(experiment, tmp_path):
    part = tmp_path / "experiment_1"
    shutil.copytree(experiment, part)
    *_, middle, last = list_checkpoints(part / "checkpoints")
    last.unlink()
    whole = load_checkpoint(experiment / "checkpoints" / last.name)
    done = run("--resume", part)
    assert done.returncode == 0, done.stderr
    assert f"resumed after step {load_checkpoint(middle)['step']}" in done.stderr + done.stdout
    resumed = load_checkpoint(last)
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    assert (part / "predictions.csv").read_text() == (experiment / "predictions.csv").read_text()


def test_a_score_is_the_same_on_1_2_and_3_processes(experiment, tmp_path):
    found = set()
    for processes in (1, 2, 3):
        done = run("evaluate", experiment, "--output", tmp_path, "--batch-size", 4, "--workers", 0, processes=processes)
        assert done.returncode == 0, done.stderr
        found.add((tmp_path / "evaluation.json").read_text())
    assert len(found) == 1
    assert json.loads(found.pop())["scores"] == json.loads((experiment / "results.json").read_text())["scores"]


def test_the_first_step_depends_only_on_the_global_batch(config_path, tmp_path):
    steps = []
    for processes, batch, accumulation in ((1, 8, 1), (1, 4, 2), (2, 4, 1), (2, 2, 2)):
        overrides = (f"train.batch_size={batch}", f"train.accumulation_steps={accumulation}", "train.epochs=1")
        folder = tmp_path / f"{processes}-{accumulation}"
        log = train(config_path, folder, *overrides, "model.drop_path_rate=0.0", processes=processes) / "train.log"
        steps.append([float(value) for value in FIRST_STEP.search(log.read_text()).groups()])
    for step in steps[1:]:
        assert step == pytest.approx(steps[0], rel=1e-5)


def test_evaluating_some_of_the_classes_finds_them_by_name(experiment, colours_root, tmp_path):
    for name in ("white", "blue"):
        shutil.copytree(colours_root / "val" / name, tmp_path / "some" / name)
    done = run("evaluate", experiment, tmp_path / "some", "--output", tmp_path, "--workers", 0)
    assert done.returncode == 0, done.stderr
    per_class = json.loads((tmp_path / "evaluation.json").read_text())["per_class"]
    recorded = json.loads((experiment / "results.json").read_text())["per_class"]
    assert per_class == {name: recorded[name] for name in ("blue", "white")}


def test_evaluating_classes_that_the_classifier_does_not_have_is_refused_in_one_line(
    experiment, colours_root, tmp_path
):
    shutil.copytree(colours_root / "val/white", tmp_path / "some/violet")
    done = run("evaluate", experiment, tmp_path / "some")
    assert done.returncode == 2
    assert re.fullmatch(r"error: class violet: not among the 6 of .*\n", done.stderr.split("\r")[-1])


def test_predictions_are_names_with_probabilities(experiment, colours_root):
    image = colours_root / "val/n01440764/0.png"
    done = run("predict", experiment, image, "--top", 2)
    assert done.returncode == 0, done.stderr
    path, *guesses = done.stdout.splitlines()
    assert path == str(image)
    shown = [re.fullmatch(r" +(\d+\.\d)%  (.+)", line).groups() for line in guesses]
    assert len(shown) == 2
    assert {name for _, name in shown} <= set(read_folders(colours_root / "val").class_names)
    assert float(shown[0][0]) >= float(shown[1][0])


def test_a_published_folder_classifies_as_its_experiment_does(experiment, colours_root, tmp_path):
    folder = tmp_path / "colours"
    words = [os.environ["PYTHON_EXEC"], "-m", "weights.publish", experiment, "--output", folder]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    image = colours_root / "val/n01440764/0.png"
    of_the_experiment, of_the_folder = run("predict", experiment, image), run("predict", folder, image)
    assert of_the_folder.returncode == 0, of_the_folder.stderr
    assert of_the_folder.stdout == of_the_experiment.stdout
    own, public = load_classifier(str(experiment)), load_classifier(str(folder / "model.safetensors"))
    assert public.class_ids == own.class_ids
    assert (public.input_size, public.resize_size) == (own.input_size, own.resize_size) == (32, 32)
    with pytest.raises(ValueError, match="no DetectionConfig in its metadata"):
        load_detector(folder)


def test_an_image_that_cannot_be_read_is_told_and_the_others_are_predicted(experiment, colours_root, tmp_path):
    (tmp_path / "broken.jpg").write_text("<html>")
    done = run("predict", experiment, tmp_path / "broken.jpg", colours_root / "val/white/0.png")
    assert done.returncode == 2
    assert "white/0.png" in done.stdout
    assert done.stderr.count("error") == 1
    assert re.search(r"broken\.jpg: cannot be decoded", done.stdout)
    assert re.search(r"error: 1 of 2 images left out, as told above: .*broken\.jpg\n", done.stderr)


def test_a_trained_classifier_starts_the_trunk_of_a_detector(experiment, sample_root):
    from detection.coco.annotations import read_split
    from detection.task import DetectionConfig, DetectionTask

    overrides = [
        f"data.root={sample_root}", f"model.weights={experiment}", "model.backbone=SwinSlimBackbone_B",
        "model.input_size=96",
    ]  # fmt: skip
    config = load_config(ROOT / "configs/quickstart.yaml", overrides, DetectionConfig)
    task = DetectionTask(config, read_split(config.data, "val"))
    trained = load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1])["ema"]["weights"]
    trunk = task.model.backbone.trunk.state_dict()
    assert len(trunk) > 100
    assert all(torch.equal(weight, trained[name]) for name, weight in trunk.items())
    assert str(experiment) in task.started_from


def test_a_grid_of_classifiers_is_run_and_compared(config_path, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "task: train_clf_imagenet\nseeds: [0]\noverrides: [train.epochs=1]\n"
        f"rows: [{{name: swin_slim, config: {config_path}}}]\n"
        "columns: [{name: none, overrides: [model.position=none]}, {name: abs, overrides: [model.position=abs]}]\n"
    )
    folder = tmp_path / "experiments"
    for words in (("run", grid, "--launcher", os.environ["PYTHON_EXEC"]), ("table", grid, "--columns", "top5")):
        done = subprocess.run(
            [os.environ["PYTHON_EXEC"], "-m", "ablation.grid", *map(str, words), "--experiments", str(folder)],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "### top1, one seed" in done.stdout
    assert "| swin_slim |" in done.stdout
    assert "swin_slim x abs - swin_slim x none" in done.stdout


@pytest.mark.parametrize("action", [(), ("evaluate",), ("predict",)], ids=["train", "evaluate", "predict"])
def test_help_is_there_for_every_action(action):
    done = run(*action, "--help")
    assert done.returncode == 0
    assert "example: python " in done.stdout


def test_a_config_that_is_wrong_is_refused_in_one_line(config_path, tmp_path):
    done = run(config_path, "model.name=swin_tt", "--experiments", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error") == 1
    assert "expected one of swin_t" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_batch_of_none_is_refused_in_the_command_line(experiment):
    done = run("evaluate", experiment, "--batch-size", 0)
    assert done.returncode == 2
    assert "--batch-size: '0': expected a number from 1 up" in done.stderr


def test_training_and_scoring_on_the_same_images_is_told(config_path, tmp_path):
    log = train(config_path, tmp_path, "data.val=train", "train.epochs=1") / "train.log"
    assert "validation images are also training images" in log.read_text()
