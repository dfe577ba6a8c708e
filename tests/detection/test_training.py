"""The commands as users start them: detection.training and detection.evaluate, on one process and on several."""

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from detection.coco.annotations import describe, read_coco, read_split
from detection.evaluate import warn_of_other_data
from detection.network.ssd import build_ssd
from detection.shapes import generate
from detection.task import DetectionConfig, DetectionTask, inputs_of
from detection.training import announce, build_task
from engine.checkpoint import load_checkpoint
from engine.config import load_config
from engine.strict_yaml import read_yaml
from records.experiment import commit_of
from records.metrics import read_metrics
from weights.release import load_release

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
    """Twelve images to train on and seven to validate."""
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "sample", num_train=12, num_val=7, image_size=96)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(root=folder / "sample"))
    return path


# Learns its training images by heart and is scored on 7 of them, so that scores are not 0; neither 2 nor 3 divides 7.
BY_HEART = (
    "data.val={images: images/train, annotations: annotations/seven.json}", "augment.photometric=false",
    "augment.zoom_out=1.0", "augment.crop_min_scale=1.0", "optim.learning_rate=2e-3", "train.epochs=25",
    "train.eval_every_epochs=25", "train.keep_checkpoints=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def seven(config_path) -> Path:
    """An annotation file of seven of the training images."""
    folder = config_path.parent / "sample/annotations"
    content = json.loads((folder / "instances_train.json").read_text())
    content["images"] = content["images"][:7]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (folder / "seven.json").write_text(json.dumps(content))
    return folder / "seven.json"


FIRST_STEP = r"first step: total (\S+), classification (\S+), box (\S+), gradient norm (\S+)"


def run(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess:
    """Start a module as a user does, on the CPU; one thread, since sums depend on their number."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [os.environ["PYTHON_EXEC"], *launcher, "-m", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
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
        "README.md", "config.yaml", "environment.json", "inputs.json", "train.log", "metrics.jsonl",
        "curves.png", "results.json", "image_statistics.npz", "detections.json", "detections.png", "examples",
        "checkpoints", "precision_recall.png", "class_scores.png", "confusion.png", "running.lock", "status.json",
    }  # fmt: skip
    record = json.loads((experiment / "results.json").read_text())
    assert set(record["scores"]) >= {"mAP", "AP50", "AP_small"}
    assert record["protocol"]["images"] == 7
    assert read_metrics(experiment)[-1]["mAP"] == record["scores"]["mAP"]
    text = (experiment / "README.md").read_text()
    assert "ResNet18SlimBackbone_B" in text
    assert "![" in text


def test_the_log_says_what_was_trained_on(experiment, config_path):
    train_split = read_split(load_config(config_path, [], DetectionConfig).data, "train")
    assert f"instances_train.json: {describe(train_split)}" in (experiment / "train.log").read_text()


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


def test_a_run_started_in_a_given_directory_goes_on_there_when_started_again(experiment, config_path, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    done = run("detection.training", config_path, "--experiment", tmp_path, "train.epochs=-1")
    assert done.returncode == 2
    assert "ERROR error: " in (tmp_path / "train.log").read_text()
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 3}\n')  # of a start that left no checkpoint
    for _ in range(2):
        done = run("detection.training", config_path, "--experiment", tmp_path)
        assert done.returncode == 0, done.stderr
    assert "resumed after step 6" in done.stdout
    assert "all 2 epochs were trained before; scoring their weights for the record" in done.stdout
    assert (tmp_path / "detections.json").read_text() == (experiment / "detections.json").read_text()
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_refused_resumption_leaves_the_experiment_as_it_was(experiment, config_path, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(config_path.parent / "sample", other)
    annotations = other / "annotations/instances_train.json"
    content = json.loads(annotations.read_text())
    content["annotations"].pop()
    annotations.write_text(json.dumps(content))
    shutil.copytree(experiment, tmp_path / "experiment_1")
    before = contents(tmp_path / "experiment_1")
    done = run("detection.training", "--resume", tmp_path / "experiment_1", f"data.root={other}")
    assert done.returncode == 2
    assert "made on other data: training annotations" in done.stderr
    assert contents(tmp_path / "experiment_1") == before


def contents(experiment: Path) -> dict[str, bytes]:
    """Every file but the log."""
    return {
        str(path): path.read_bytes() for path in experiment.rglob("*") if path.is_file() and path.name != "train.log"
    }


def test_a_run_is_not_resumed_with_another_recipe(experiment, config_path):
    done = run("detection.training", config_path, "optim.learning_rate=2e-3", "--resume", experiment)
    assert done.returncode == 2
    assert "optim.learning_rate was 0.001, is 0.002" in done.stderr


@pytest.mark.parametrize(
    "model",
    [("model.backbone=ResNet18SlimBackbone_B", "train.batch_norm=frozen"), ("model.backbone=SwinSlimBackbone_B",)],
)
@pytest.mark.parametrize(("processes", "batch_size", "accumulation_steps"), [(2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_the_first_step_depends_only_on_the_global_batch(
    config_path, first_steps, model, processes, batch_size, accumulation_steps
):
    whole = first_steps(model, 1, 4, 1)
    cut = first_steps(model, processes, batch_size, accumulation_steps)
    assert cut["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert cut["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-4)


@pytest.fixture(scope="module")
def first_steps(config_path, tmp_path_factory):
    """What the log says of the first step at a global batch of 4, cut in one way or another."""

    @functools.cache
    def first_step(model: tuple[str, ...], processes: int, batch_size: int, accumulation_steps: int) -> dict:
        cut = (f"train.batch_size={batch_size}", f"train.accumulation_steps={accumulation_steps}", "train.epochs=1")
        folder = tmp_path_factory.mktemp("first")
        experiment = train(config_path, folder, *model, "model.drop_path_rate=0.0", *cut, processes=processes)
        found = re.search(FIRST_STEP, (experiment / "train.log").read_text())
        *losses, norm = map(float, found.groups())
        return {"losses": losses, "gradient_norm": norm}

    return first_step


@pytest.fixture(scope="module")
def learned(config_path, seven, tmp_path_factory) -> Path:
    """A run on two processes that learned something; BatchNorm's statistics differ between them."""
    return train(config_path, tmp_path_factory.mktemp("learned"), *BY_HEART, "train.batch_size=2", processes=2)


def test_a_run_on_two_processes_reports_the_score_of_the_checkpoint_it_saved(learned):
    done = run("detection.evaluate", learned)
    assert done.returncode == 0, done.stderr
    settings = json.loads((learned / "test.json").read_text())["settings"]
    scores = json.loads((learned / "results.json").read_text())["scores"]
    assert scores["mAP"] > 0.1
    assert {name: settings[0][name] for name in scores} == scores


def test_the_score_is_the_same_to_the_last_digit_on_1_2_and_3_processes(learned):
    texts = []
    for processes in (1, 2, 3):
        done = run("detection.evaluate", learned, "eval.score_threshold=0.01,0.05", processes=processes)
        assert done.returncode == 0, done.stderr
        texts.append((learned / "test.json").read_text())
    assert texts[0] == texts[1] == texts[2]
    assert json.loads(texts[0])["settings"][0]["mAP"] > 0.1


def test_a_run_resumed_on_two_processes_ends_as_the_uninterrupted_one(config_path, tmp_path):
    recipe = ("optim.schedule=steps", "optim.drop_epochs=[1]", "train.ema_decay=0.9", "train.batch_size=2")
    whole = train(config_path, tmp_path, *recipe, "train.checkpoint_every_steps=1", processes=2)
    part = tmp_path / "experiment_2"
    (part / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "checkpoints/step_000000002.pt"):
        (part / name).write_bytes((whole / name).read_bytes())
    done = run("detection.training", "--resume", part, processes=2)
    assert done.returncode == 0, done.stderr
    first, second = (load_checkpoint(path / "checkpoints/step_000000006.pt") for path in (whole, part))
    for key in ("model", "optimizer", "ema", "loss_sums", "scheduler"):
        assert_equal(first[key], second[key])


def assert_equal(one: object, other: object) -> None:
    """Equal to the last bit, tensors too."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("field", ["weights", "start_from"])
def test_resuming_and_testing_need_no_pretrained_file(experiment, tmp_path, field):
    copy = tmp_path / "experiment_1"
    shutil.copytree(experiment, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(f"{field}: null", f"{field}: /gone/resnet.pth"))
    starts = json.loads((copy / "environment.json").read_text())
    starts[-1]["config"]["model"][field] = "/gone/resnet.pth"
    (copy / "environment.json").write_text(json.dumps(starts))
    for command in (("detection.evaluate", copy), ("detection.training", "--resume", copy)):
        done = run(*command)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def released(experiment, tmp_path_factory) -> Path:
    """Its weights after the last epoch."""
    path = tmp_path_factory.mktemp("released") / "detector.safetensors"
    done = run("detection.evaluate", experiment, "--release", path)
    assert done.returncode == 0, done.stderr
    return path


def test_released_weights_say_what_they_are(experiment, released):
    _, facts = load_release(released)
    record = json.loads((experiment / "results.json").read_text())
    root = read_yaml(experiment / "config.yaml")[0]["data"]["root"]
    assert facts["config"] == (experiment / "config.yaml").read_text().replace(root, Path(root).name)
    assert facts["task"] == "detection"
    assert json.loads(facts["classes"]) == record["protocol"]["classes"]
    assert len(json.loads(facts["category_ids"])) == len(record["protocol"]["classes"])
    assert json.loads(facts["scores"]) == record["scores"]
    assert facts["step"] == "6"
    assert facts["commit"] == commit_of(json.loads((experiment / "environment.json").read_text())[0])


def test_released_weights_score_as_the_checkpoint_they_are_of(experiment, released):
    done = run("detection.evaluate", experiment, "--checkpoint", released)
    assert done.returncode == 0, done.stderr
    found = json.loads((experiment / "test.json").read_text())
    assert found["checkpoint"] == "detector.safetensors"
    scores = json.loads((experiment / "results.json").read_text())["scores"]
    assert found["settings"][0].items() >= scores.items()


@pytest.fixture(scope="module")
def published(experiment, config_path, tmp_path_factory) -> Path:
    """The same in a folder of weights.publish."""
    path = tmp_path_factory.mktemp("published") / "cells"
    done = run("weights.publish", experiment, "--output", path)
    assert done.returncode == 0, done.stderr
    return path


def test_a_published_folder_scores_as_its_experiment(experiment, published, config_path):
    done = run("detection.evaluate", published, f"data.root={config_path.parent / 'sample'}")
    assert done.returncode == 0, done.stderr
    scores = json.loads((experiment / "results.json").read_text())["scores"]
    assert json.loads((published / "test.json").read_text())["settings"][0].items() >= scores.items()


def test_a_published_folder_is_not_released_again(published, config_path, tmp_path):
    data = f"data.root={config_path.parent / 'sample'}"
    done = run("detection.evaluate", published, data, "--release", tmp_path / "a.safetensors")
    assert done.returncode == 2
    assert "model.safetensors are released weights already; copy them" in done.stderr


def test_released_weights_are_fine_tuned_on_other_classes(config_path, released, tmp_path):
    root = tmp_path / "sample"
    shutil.copytree(config_path.parent / "sample", root)
    for path in (root / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        content["categories"].append({"id": 99, "name": "extra"})
        path.write_text(json.dumps(content))
    experiment = train(
        config_path, tmp_path / "e", f"data.root={root}", f"model.start_from={released}", "train.epochs=1"
    )
    log = (experiment / "train.log").read_text()
    assert log.count(f"INFO started from {released}, step 6: ") == 1
    assert "the 12 of the class heads not: they start from random weights, for its classes are others" in log
    assert f"fine-tuned from {released}" in (experiment / "README.md").read_text()


def test_a_sweep_is_not_released(experiment, tmp_path):
    done = run("detection.evaluate", experiment, "eval.nms_iou=0.4,0.5", "--release", tmp_path / "a.safetensors")
    assert done.returncode == 2
    assert "error: --release: scores of one setting are released, not of 2" in done.stderr


def test_a_broken_image_is_one_line_even_from_a_loader_process(config_path, tmp_path):
    root = tmp_path / "sample"
    shutil.copytree(config_path.parent / "sample", root)
    broken = next((root / "images/train").iterdir())
    broken.write_bytes(broken.read_bytes()[:600])
    done = run(
        "detection.training", config_path, f"data.root={root}", "data.workers=1", "--experiments", tmp_path / "e"
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error") == 1
    assert broken.name in done.stderr


def test_several_thresholds_make_a_sweep(experiment):
    done = run("detection.evaluate", experiment, "eval.score_threshold=0.01,0.9", "eval.nms_iou=0.45,0.5")
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
        ("model.start_from=/nowhere/detector.pt", "model.start_from: /nowhere/detector.pt: no such checkpoint"),
        ("train.batch_size=64", "batch_size 64"),
        ("train.batch_size=1", "train.batch_size 1"),
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
    done = run("detection.evaluate", experiment, "model.neck=fpn")
    assert done.returncode == 2
    assert "missing: neck." in done.stderr


def test_scoring_on_other_classes_is_refused(experiment, config_path, tmp_path):
    root = tmp_path / "sample"
    shutil.copytree(config_path.parent / "sample", root)
    path = root / "annotations/instances_val.json"
    path.write_text(path.read_text().replace('"ring"', '"torus"'))
    done = run("detection.evaluate", experiment, f"data.root={root}")
    assert done.returncode == 2
    assert "'torus'" in done.stderr


def test_a_folder_that_is_no_experiment_is_refused_untouched(tmp_path):
    for command in (("detection.evaluate", tmp_path), ("detection.training", "--resume", tmp_path)):
        done = run(*command)
        assert done.returncode == 2
        assert "name an experiment directory" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_an_experiment_is_refused_with_the_cure(released):
    done = run("detection.evaluate", released)
    assert done.returncode == 2
    assert f"error: {released}: a file; name the experiment's directory, weights by --checkpoint FILE" in done.stderr


def test_an_experiment_without_checkpoints_is_refused_untouched(experiment, tmp_path):
    copy = tmp_path / "experiment_1"
    shutil.copytree(experiment, copy, ignore=shutil.ignore_patterns("checkpoints"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = run("detection.training", "--resume", copy)
    assert done.returncode == 2
    assert "no checkpoint in it" in done.stderr
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_help_is_there_for_both_commands():
    for module in ("detection.training", "detection.evaluate"):
        done = run(module, "--help")
        assert done.returncode == 0
        assert "example: python -m detection." in done.stdout


CONFIGS = [path for path in sorted((ROOT / "configs").glob("[!g]*.yaml")) if "backbone:" in path.read_text()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
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


def test_training_says_what_the_scores_cannot_exceed(config_path, tmp_path, caplog):
    root = tmp_path / "sample"
    shutil.copytree(config_path.parent / "sample", root)
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    empty = {"image_id": content["images"][0]["id"], "category_id": 1, "bbox": [0, 0, 0, 0]}
    content["annotations"] += [{"id": 900 + k} | empty for k in range(2)]
    path.write_text(json.dumps(content))
    task = build_task(load_config(config_path, [f"data.root={root}", "eval.max_detections=1"], DetectionConfig), False)
    announce(task)
    ceiling, most = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ceiling.startswith(f"{path}: 2 boxes without area count as missed: mAP cannot exceed 0.")
    assert "eval.max_detections, 1: raise it" in most


@pytest.mark.parametrize(
    ("scored", "expected"),
    [
        ("val", []),
        ("seven", ["not the annotations of the training", "at least 7 of 7 images to score were trained on"]),
    ],
)
def test_images_that_were_trained_on_are_reported_when_they_are_scored(
    config_path, seven, tmp_path, caplog, scored, expected
):
    config = load_config(config_path, (), DetectionConfig)
    train, val = (read_split(config.data, half) for half in ("train", "val"))
    inputs_of(config.data, train, val).write(tmp_path)
    with caplog.at_level("WARNING", logger="workbench"):
        warn_of_other_data(tmp_path, val if scored == "val" else read_coco(seven, train.images_dir))
    assert len(caplog.messages) == len(expected)
    assert all(part in message for part, message in zip(expected, caplog.messages, strict=True))
