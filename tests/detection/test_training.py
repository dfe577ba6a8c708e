"""The commands as users start them: detection.training and detection.test, on one process and on several."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detection.data import read_coco, read_split
from detection.sample import generate
from detection.ssd import build_ssd
from detection.training import DetectionConfig, DetectionTask
from engine.checkpoint import load_checkpoint
from engine.config import load_config
from engine.logbook import read_metrics

ROOT = Path(__file__).parent.parent.parent

CONFIG = """
data:
  root: {root}
  train: {{images: images/train, annotations: annotations/instances_train.json}}
  val: {{images: images/val, annotations: annotations/instances_val.json}}
  workers: 0
model: {{backbone: ResNet18SlimBackbone_B, neck: none, input_size: 96}}
optim: {{optimizer: adamw, learning_rate: 1e-3, reference_batch_size: 4, warmup_epochs: 1, schedule: cosine}}
train: {{epochs: 2, batch_size: 4, precision: fp32, keep_checkpoints: 9}}
eval: {{score_threshold: 0.01}}
"""


@pytest.fixture(scope="module")
def config_path(tmp_path_factory) -> Path:
    """Twelve images to train on and seven to validate, which neither 2 nor 3 processes divide evenly."""
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "sample", num_train=12, num_val=7, image_size=96)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(root=folder / "sample"))
    return path


FIRST_STEP = r"first step: total (\S+), classification (\S+), box (\S+), gradient norm (\S+)"


def run(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess:
    """Start a module as a user does; one thread, since sums depend on their number."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def train(config_path: Path, experiments: Path, *overrides: str, processes: int = 1) -> Path:
    """A finished run's directory."""
    done = run("detection.training", config_path, *overrides, "--experiments", experiments, processes=processes)
    assert done.returncode == 0, done.stderr
    return max(experiments.iterdir(), key=lambda path: int(path.name.partition("_")[2]))


@pytest.fixture(scope="module")
def experiment(config_path, tmp_path_factory) -> Path:
    return train(config_path, tmp_path_factory.mktemp("experiments"))


def test_a_run_leaves_its_whole_record(experiment):
    assert experiment.name == "experiment_1"
    names = {path.name for path in experiment.iterdir()}
    assert names == {
        "README.md", "config.yaml", "environment.json", "train.log", "metrics.jsonl", "curves.png",
        "results.json", "detections.json", "detections.png", "checkpoints",
    }  # fmt: skip
    record = json.loads((experiment / "results.json").read_text())
    assert set(record["scores"]) >= {"mAP", "AP50", "AP_small"}
    assert record["protocol"]["images"] == 7
    assert read_metrics(experiment)[-1]["mAP"] == record["scores"]["mAP"]
    text = (experiment / "README.md").read_text()
    assert "ResNet18SlimBackbone_B" in text
    assert "![" in text


def test_the_resolved_config_repeats_the_experiment_bit_by_bit(experiment, tmp_path):
    again = train(experiment / "config.yaml", tmp_path)
    first, second = (load_checkpoint(path / "checkpoints/step_000000006.pt") for path in (experiment, again))
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    assert (again / "detections.json").read_text() == (experiment / "detections.json").read_text()


def test_a_resumed_run_ends_as_the_uninterrupted_one(experiment, config_path, tmp_path):
    part = tmp_path / "experiment_1"
    (part / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "checkpoints/step_000000003.pt"):
        (part / name).write_bytes((experiment / name).read_bytes())
    done = run("detection.training", "--resume", part)
    assert done.returncode == 0, done.stderr
    whole, resumed = (load_checkpoint(path / "checkpoints/step_000000006.pt") for path in (experiment, part))
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    assert [line["epoch"] for line in read_metrics(part)] == [1, 2]
    assert len(json.loads((part / "environment.json").read_text())) == 2


def test_a_run_is_not_resumed_with_another_recipe(experiment, config_path):
    done = run("detection.training", config_path, "optim.learning_rate=2e-3", "--resume", experiment)
    assert done.returncode == 2
    assert "optim.learning_rate was 0.001, is 0.002" in done.stderr


@pytest.mark.parametrize(
    "model",
    [("model.backbone=ResNet18SlimBackbone_B", "train.batch_norm=frozen"), ("model.backbone=SwinSlimBackbone_B",)],
)
def test_two_processes_take_the_first_step_of_one_with_the_same_global_batch(config_path, tmp_path, model):
    losses = []
    for processes, batch_size in ((1, 4), (2, 2)):
        folder = tmp_path / str(processes)
        overrides = (*model, "model.drop_path_rate=0.0", "train.epochs=1", f"train.batch_size={batch_size}")
        log = (train(config_path, folder, *overrides, processes=processes) / "train.log").read_text()
        losses.append([float(text) for text in re.search(FIRST_STEP, log).groups()])
    assert losses[1][:3] == pytest.approx(losses[0][:3], rel=1e-5)
    assert losses[1][3] == pytest.approx(losses[0][3], rel=1e-3)  # the gradients were averaged, too


def test_a_run_on_two_processes_reports_the_score_of_the_checkpoint_it_saved(config_path, tmp_path):
    overrides = ("train.batch_size=2", "train.epochs=3", "optim.learning_rate=5e-3")  # BatchNorm statistics differ
    experiment = train(config_path, tmp_path, *overrides, processes=2)
    done = run("detection.test", experiment)
    assert done.returncode == 0, done.stderr
    settings = json.loads((experiment / "test.json").read_text())["settings"]
    scores = json.loads((experiment / "results.json").read_text())["scores"]
    assert {name: settings[0][name] for name in scores} == scores


def test_the_score_is_the_same_to_the_last_digit_on_1_2_and_3_processes(experiment):
    texts = []
    for processes in (1, 2, 3):
        done = run("detection.test", experiment, processes=processes)
        assert done.returncode == 0, done.stderr
        texts.append((experiment / "test.json").read_text())
    assert texts[0] == texts[1] == texts[2]
    scores = json.loads((experiment / "results.json").read_text())["scores"]
    assert json.loads(texts[0])["settings"][0]["mAP"] == scores["mAP"]


def test_several_thresholds_make_a_sweep(experiment):
    done = run("detection.test", experiment, "eval.score_threshold=0.01,0.9", "eval.nms_iou=0.45,0.5")
    assert done.returncode == 0, done.stderr
    rows = json.loads((experiment / "test.json").read_text())["settings"]
    assert [(row["score_threshold"], row["nms_iou"]) for row in rows] == [
        (0.01, 0.45), (0.01, 0.5), (0.9, 0.45), (0.9, 0.5),
    ]  # fmt: skip
    assert "score_threshold" in done.stdout


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.root=/nowhere", "/nowhere"),
        ("model.neck=fnp", "did you mean 'fpn'"),
        ("model.weights=/nowhere/resnet.pth", "/nowhere/resnet.pth"),
        ("train.batch_size=64", "batch_size 64"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_experiment(config_path, tmp_path, override, named):
    done = run("detection.training", config_path, override, "--experiments", tmp_path / "experiments")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error") == 1
    assert named in done.stderr
    assert not (tmp_path / "experiments").exists()


def test_a_checkpoint_of_another_model_is_refused_with_what_differs(experiment):
    done = run("detection.test", experiment, "model.neck=fpn")
    assert done.returncode == 2
    assert "missing: neck." in done.stderr


def test_help_is_there_for_both_commands():
    for module in ("detection.training", "detection.test"):
        done = run(module, "--help")
        assert done.returncode == 0
        assert "example: python -m detection." in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds_its_detector(path):
    config = load_config(path, ["model.weights=null"], DetectionConfig)
    assert build_ssd(config.model, num_classes=80).anchors_cxcywh.shape[1] == 4


def test_different_classes_in_training_and_validation_are_refused(config_path, sample_root, tmp_path):
    config = load_config(config_path, [], DetectionConfig)
    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    path = Path(config.data.root) / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 99, "name": "extra"})
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    val = read_coco(other, val.images_dir)
    with pytest.raises(ValueError, match="must list the same classes"):
        DetectionTask(config, val, train)
