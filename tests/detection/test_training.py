"""detection.training and detection.evaluate as users start them, on one process and on several."""

import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detection.evaluate
import detection.training
from ablation.scheduling.jobs import read_grid
from detection.coco.annotations import describe, read_coco, read_split
from detection.detector import load
from detection.evaluate import warn_about_data
from detection.network.anchors import AUTO
from detection.network.backbones import build_backbone
from detection.network.ssd import build_ssd
from detection.shapes import generate
from detection.task import DetectionConfig, identify_inputs
from detection.training import announce, build_task
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.compute.placement import set_train_mode
from engine.config import load_config
from engine.files import file_sha256
from records.experiment import read_environments
from records.metrics import read_metrics
from training import Trainer
from weights.timm_weights import tags_of

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
    """Write a config and a data set with twelve training and seven validation images."""
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "sample", num_train=12, num_val=7, image_size=96)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(root=folder / "sample"))
    return path


# Overfit the training images and score 7 of them, so that scores are not 0.
OVERFIT = (
    "data.val={images: images/train, annotations: annotations/seven.json}", "augment.photometric=false",
    "augment.zoom_out=1.0", "augment.crop_min_scale=1.0", "optim.learning_rate=2e-3", "train.epochs=25",
    "train.eval_every_epochs=25", "train.keep_checkpoints=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def seven(config_path) -> Path:
    """Write an annotation file of seven of the training images."""
    folder = config_path.parent / "sample/annotations"
    content = json.loads((folder / "instances_train.json").read_text())
    content["images"] = content["images"][:7]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (folder / "seven.json").write_text(json.dumps(content))
    return folder / "seven.json"


FIRST_STEP = r"first step: total (\S+), classification (\S+), box (\S+), gradient norm (\S+)"


def launch(module: str, *words: object, processes: int) -> subprocess.CompletedProcess:
    """Run a command on several CPU processes, with one thread each because sums depend on the number of threads."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *launcher, "-m", module, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def train(config_path: Path, experiments: Path, *overrides: str, processes: int = 1) -> Path:
    """Train a run and return its directory."""
    words = (config_path, *overrides, "--experiments", experiments)
    if processes > 1:
        done = launch("detection.training", *words, processes=processes)
        assert done.returncode == 0, done.stderr
    else:
        detection.training.main(detection.training.parse_arguments([*map(str, words)]), torch.device("cpu"))
    return max(experiments.iterdir(), key=lambda path: int(path.name.partition("_")[2]))


@pytest.fixture
def run(run_in_process):
    """Return a function that runs a module in this process, checks its exit code and returns its output and errors."""

    def run(module: str, *words: object, code: int = 0) -> str:
        found, output, errors = run_in_process(importlib.import_module(module), *words)
        assert found == code, errors
        assert len(errors) == (code > 0)
        return output + "\n".join(errors)

    return run


@pytest.fixture(scope="module")
def experiment(config_path, tmp_path_factory) -> Path:
    return train(config_path, tmp_path_factory.mktemp("experiments"))


@pytest.fixture(scope="module")
def averaged(config_path, tmp_path_factory) -> Path:
    """Train a run with a moving average of the weights."""
    return train(config_path, tmp_path_factory.mktemp("averaged"), "train.ema_decay=0.9")


def part_of(experiment: Path, folder: Path, step: int) -> Path:
    """Copy what the experiment had when it was interrupted after `step`."""
    part = folder / "part"
    (part / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", f"checkpoints/step_{step:09d}.pt"):
        (part / name).write_bytes((experiment / name).read_bytes())
    return part


def last_state(experiment: Path) -> dict:
    return load_checkpoint(experiment / "checkpoints/step_000000006.pt")


def results(experiment: Path) -> dict:
    return json.loads((experiment / "results.json").read_text())


def scored(experiment: Path) -> dict:
    return json.loads((experiment / "test.json").read_text())


def test_a_run_writes_its_complete_record(experiment, config_path):
    assert experiment.name == "experiment_1"
    names = {path.name for path in experiment.iterdir()}
    assert names == {
        "README.md", "config.yaml", "environment.json", "inputs.json", "train.log", "metrics.jsonl",
        "curves.png", "results.json", "image_statistics.npz", "detections.json", "detections.png", "examples",
        "checkpoints", "precision_recall.png", "class_scores.png", "confusion.png", "running.lock", "status.json",
    }  # fmt: skip
    record = results(experiment)
    assert set(record["scores"]) >= {"mAP", "AP50", "AP_small"}
    assert record["protocol"]["images"] == 7
    assert read_metrics(experiment)[-1]["mAP"] == record["scores"]["mAP"]
    assert "ResNet18SlimBackbone_B" in (experiment / "README.md").read_text()
    train_split = read_split(load_config(config_path, [], DetectionConfig).data, "train")
    assert f"instances_train.json: {describe(train_split)}" in (experiment / "train.log").read_text()


# ---- the same run again ------------------------------------------------------------------------------------------


def test_the_resolved_config_reproduces_the_experiment_bit_for_bit(experiment, tmp_path):
    again = train(experiment / "config.yaml", tmp_path)
    assert_equal(last_state(again)["model"], last_state(experiment)["model"])
    assert (again / "detections.json").read_text() == (experiment / "detections.json").read_text()


def test_a_resumed_run_ends_like_the_uninterrupted_run(experiment, run, tmp_path):
    part = part_of(experiment, tmp_path, step=3)
    run("detection.training", "--resume", part)
    assert_equal(last_state(part)["model"], last_state(experiment)["model"])
    assert [line["epoch"] for line in read_metrics(part)] == [1, 2]
    assert len(json.loads((part / "environment.json").read_text())) == 2


def test_a_run_resumed_on_two_processes_ends_like_the_uninterrupted_run(config_path, tmp_path):
    recipe = ("optim.schedule=steps", "optim.drop_epochs=[1]", "train.ema_decay=0.9", "train.batch_size=2")
    whole = train(config_path, tmp_path, *recipe, "train.checkpoint_every_steps=1", processes=2)
    part = part_of(whole, tmp_path, step=2)
    done = launch("detection.training", "--resume", part, processes=2)
    assert done.returncode == 0, done.stderr
    for key in ("model", "optimizer", "ema", "loss_sums", "scheduler"):
        assert_equal(last_state(part)[key], last_state(whole)[key])


@pytest.mark.parametrize("change", ["set", "delete"])
def test_a_resumed_run_keeps_the_statistics_of_the_pixels_or_sets_those_of_imagenet(averaged, run, tmp_path, change):
    part = part_of(averaged, tmp_path, step=3)
    path = part / "checkpoints/step_000000003.pt"
    state = load_checkpoint(path)
    for weights in (state["model"], state["ema"]["weights"]):
        for name in ("pixel_mean", "pixel_std"):
            if change == "set":
                weights[name].fill_(0.5)
            else:
                del weights[name]
    save_checkpoint(path, state)
    run("detection.training", "--resume", part)
    if change == "delete":
        for key in ("model", "ema"):
            assert_equal(last_state(part)[key], last_state(averaged)[key])
    else:
        for weights in (last_state(part)["model"], last_state(part)["ema"]["weights"]):
            assert weights["pixel_mean"].tolist() == weights["pixel_std"].tolist() == [0.5] * 3


# ---- frozen parts ------------------------------------------------------------------------------------------------

STEMS = ("conv1.", "bn1.", "patch_embed.")


@pytest.fixture(scope="module")
def trunk_weights(tmp_path_factory):
    """Return a function that writes weights for the trunk of a backbone, with statistics that no image has."""
    folder = tmp_path_factory.mktemp("trunks")

    @functools.cache
    def write(backbone: str) -> Path:
        torch.manual_seed(1)
        weights = build_backbone(backbone).trunk.state_dict()
        weights = {name: value + 0.1 if "running" in name else value for name, value in weights.items()}
        torch.save(weights, folder / f"{backbone}.pth")
        return folder / f"{backbone}.pth"

    return write


def trunk_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "backbone.trunk."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("freeze", ["none", "stem", "trunk"])
@pytest.mark.parametrize("backbone", ["ResNet18SlimBackbone_B", "SwinSlimBackbone_B"])
def test_steps_change_everything_but_the_frozen_part(config_path, trunk_weights, tmp_path, backbone, freeze):
    words = (f"model.backbone={backbone}", f"model.freeze={freeze}", "train.ema_decay=0.9", "optim.clip_norm=0.1")
    config = load_config(config_path, [*words, f"model.weights={trunk_weights(backbone)}"], DetectionConfig)
    trainer = Trainer(build_task(config, False), tmp_path, torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.state.model.state_dict().items()}
    set_train_mode(trainer.parallel_model, config.train.batch_norm)
    batches = list(trainer.loader)
    for _ in range(3):
        trainer.train_step(batches[:1])
    trainer.save()  # checks that all steps were finite
    frozen = {"none": (), "stem": STEMS, "trunk": ("",)}[freeze]
    for model in (trainer.state.model, trainer.state.scored_model):
        after = model.state_dict()
        unchanged = {name for name, value in after.items() if torch.equal(value, before[name])}
        expected = {f"backbone.trunk.{name}" for name in trunk_of(before) if name.startswith(frozen)}
        expected |= {"pixel_mean", "pixel_std"}
        assert unchanged == expected
    optimized = sum(len(group["params"]) for group in trainer.state.optimizer.param_groups)
    assert optimized == sum(name not in expected for name, _ in trainer.state.model.named_parameters())


def test_a_run_with_a_frozen_stem_on_two_processes_needs_its_weights_file_only_once(
    config_path, trunk_weights, run, tmp_path
):
    weights = shutil.copy(trunk_weights("ResNet18SlimBackbone_B"), tmp_path / "trunk.pth")
    recipe = ("model.freeze=stem", "optim.backbone_lr_ratio=0.1", "train.ema_decay=0.9", "train.batch_size=2")
    words = (*recipe, f"model.weights={weights}", "train.checkpoint_every_steps=1")
    whole = train(config_path, tmp_path / "e", *words, processes=2)
    log = (whole / "train.log").read_text()
    sizes = [int(size.replace(",", "")) for size in re.search(r"freeze stem: (\S+) of (\S+) parameters", log).groups()]
    assert sizes[1] - sizes[0] == 7 * 7 * 3 * 32 + 2 * 32
    assert "with frozen stem" in results(whole)["facts"]["Model"]
    before = torch.load(weights)
    for state in (last_state(whole)["model"], last_state(whole)["ema"]["weights"]):
        same = {name for name, value in trunk_of(state).items() if torch.equal(value, before[name])}
        assert same == {name for name in before if name.startswith(STEMS)} & trunk_of(state).keys()

    Path(weights).unlink()
    part = part_of(whole, tmp_path, step=2)
    done = launch("detection.training", "--resume", part, processes=2)
    assert done.returncode == 0, done.stderr
    for key in ("model", "optimizer", "ema", "loss_sums", "scheduler"):
        assert_equal(last_state(part)[key], last_state(whole)[key])
    run("detection.evaluate", whole)
    assert scored(whole)["settings"][0].items() >= results(whole)["scores"].items()
    run("weights.publish", whole, "--output", tmp_path / "published")
    assert load(tmp_path / "published").config.model.freeze == "stem"


def assert_equal(a: object, b: object) -> None:
    """Assert that nested data and tensors are bitwise equal."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_equal(*pair)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_run_in_a_given_directory_resumes_there_when_started_again(experiment, config_path, run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    run("detection.training", config_path, "--experiment", tmp_path, "train.epochs=-1", code=2)
    assert "ERROR error: " in (tmp_path / "train.log").read_text()
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 3}\n')  # from a start without a checkpoint
    run("detection.training", config_path, "--experiment", tmp_path)
    output = run("detection.training", config_path, "--experiment", tmp_path)
    assert "resumed after step 6" in output
    assert "all 2 epochs are already trained" in output
    assert (tmp_path / "detections.json").read_text() == (experiment / "detections.json").read_text()
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_refused_resume_does_not_change_the_experiment(experiment, config_path, run, tmp_path):
    changed = shutil.copytree(config_path.parent / "sample", tmp_path / "changed")
    annotations = changed / "annotations/instances_train.json"
    content = json.loads(annotations.read_text())
    content["annotations"].pop()
    annotations.write_text(json.dumps(content))
    copy = shutil.copytree(experiment, tmp_path / "experiment_1")
    before = contents(copy)
    error = run("detection.training", "--resume", copy, f"data.root={changed}", code=2)
    assert "data: training annotations" in error
    error = run("detection.training", config_path, "optim.learning_rate=2e-3", "--resume", copy, code=2)
    assert "optim.learning_rate was 0.001, is 0.002" in error
    assert contents(copy) == before
    shutil.rmtree(copy / "checkpoints")
    before = contents(copy)
    assert "an experiment directory" in run("detection.training", "--resume", changed, code=2)
    assert "no checkpoint in it" in run("detection.training", "--resume", copy, code=2)
    assert contents(copy) == before


def contents(experiment: Path) -> dict[str, bytes]:
    """Return the content of every file except the log."""
    return {
        str(path): path.read_bytes() for path in experiment.rglob("*") if path.is_file() and path.name != "train.log"
    }


@pytest.mark.parametrize(
    "model",
    [("model.backbone=ResNet18SlimBackbone_B", "train.batch_norm=frozen"), ("model.backbone=SwinSlimBackbone_B",)],
)
@pytest.mark.parametrize(("processes", "batch_size", "accumulation_steps"), [(2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_the_first_step_depends_only_on_the_global_batch(first_steps, model, processes, batch_size, accumulation_steps):
    whole = first_steps(model, 1, 4, 1)
    split = first_steps(model, processes, batch_size, accumulation_steps)
    assert split["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert split["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-4)


@pytest.fixture(scope="module")
def first_steps(config_path, tmp_path_factory):
    """Return a function that trains with a global batch of 4 and returns losses and gradient norm of the first step."""

    @functools.cache
    def first_step(model: tuple[str, ...], processes: int, batch_size: int, accumulation_steps: int) -> dict:
        batch = (f"train.batch_size={batch_size}", f"train.accumulation_steps={accumulation_steps}", "train.epochs=1")
        folder = tmp_path_factory.mktemp("first")
        experiment = train(config_path, folder, *model, "model.drop_path_rate=0.0", *batch, processes=processes)
        match = re.search(FIRST_STEP, (experiment / "train.log").read_text())
        *losses, norm = map(float, match.groups())
        return {"losses": losses, "gradient_norm": norm}

    return first_step


# ---- scoring -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(config_path, seven, tmp_path_factory) -> Path:
    """Train on two processes, whose BatchNorm statistics differ, until the score is not 0."""
    return train(config_path, tmp_path_factory.mktemp("learned"), *OVERFIT, "train.batch_size=2", processes=2)


def test_a_run_on_two_processes_records_the_score_of_its_saved_checkpoint(learned, run):
    run("detection.evaluate", learned)
    scores = results(learned)["scores"]
    assert scores["mAP"] > 0.1
    assert scored(learned)["settings"][0].items() >= scores.items()


def test_several_thresholds_are_scored_in_every_combination(experiment, run):
    output = run("detection.evaluate", experiment, "eval.score_threshold=0.01,0.9", "eval.nms_iou=0.45,0.5")
    assert [(row["score_threshold"], row["nms_iou"]) for row in scored(experiment)["settings"]] == [
        (0.01, 0.45), (0.01, 0.5), (0.9, 0.45), (0.9, 0.5),
    ]  # fmt: skip
    assert "score_threshold" in output


@pytest.mark.parametrize("field", ["weights", "start_from"])
def test_resuming_and_scoring_do_not_need_the_pretrained_weights(experiment, run, tmp_path, field):
    copy = shutil.copytree(experiment, tmp_path / "experiment_1")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(f"{field}: null", f"{field}: /gone/resnet.pth"))
    starts = json.loads((copy / "environment.json").read_text())
    starts[-1]["config"]["model"][field] = "/gone/resnet.pth"
    (copy / "environment.json").write_text(json.dumps(starts))
    run("detection.evaluate", copy)
    run("detection.training", "--resume", copy)


def test_a_published_folder_scores_like_its_experiment_and_can_be_fine_tuned_on_different_classes(
    experiment, config_path, run, tmp_path
):
    folder, root = tmp_path / "cells", shutil.copytree(config_path.parent / "sample", tmp_path / "sample")
    run("weights.publish", experiment, "--output", folder)
    run("detection.evaluate", folder, f"data.root={root}")
    assert scored(folder)["settings"][0].items() >= results(experiment)["scores"].items()
    run("detection.evaluate", experiment, "--checkpoint", folder / "model.safetensors")
    assert scored(experiment)["checkpoint"] == "model.safetensors"
    assert scored(experiment)["settings"] == scored(folder)["settings"]
    for path in (root / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        content["categories"].append({"id": 99, "name": "extra"})
        path.write_text(json.dumps(content))
    words = (f"data.root={root}", f"model.start_from={folder}", "train.epochs=1")
    tuned = train(config_path, tmp_path / "e", *words)
    log = (tuned / "train.log").read_text()
    assert log.count(f"INFO detector from {folder}/model.safetensors (SHA-256 ") == 1
    assert "12 class-head weights start at random" in log
    weights = results(tuned)["initial_weights"]
    assert weights == read_environments(tuned)[0]["initial_weights"]
    assert (weights["name"], weights["sha256"]) == (str(folder), file_sha256(folder / "model.safetensors"))
    assert weights["file"] in results(tuned)["facts"]["Model"]
    assert results(experiment)["initial_weights"] is None


# ---- errors and warnings -----------------------------------------------------------------------------------------


def test_a_broken_image_is_a_one_line_error_even_from_a_loader_process(config_path, run, tmp_path):
    root = shutil.copytree(config_path.parent / "sample", tmp_path / "sample")
    broken = next((root / "images/train").iterdir())
    broken.write_bytes(broken.read_bytes()[:600])
    words = (config_path, f"data.root={root}", "data.workers=1", "--experiments", tmp_path / "e")
    assert broken.name in run("detection.training", *words, code=2)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.root=/nowhere", "/nowhere"),
        ("model.neck=fnp", "'fpn'"),
        ("model.weights=/nowhere/resnet.pth", "/nowhere/resnet.pth"),
        ("model.start_from=/nowhere/detector.pt", "model.start_from: /nowhere/detector.pt: no such checkpoint"),
        ("train.batch_size=64", "batch_size 64"),
        ("train.batch_size=1", "train.batch_size 1"),
    ],
)
def test_invalid_input_is_a_one_line_error_and_creates_no_experiment(config_path, run, tmp_path, override, named):
    error = run("detection.training", config_path, override, "--experiments", tmp_path / "experiments", code=2)
    assert named in error
    assert not (tmp_path / "experiments").exists()


def test_evaluate_refuses_a_wrong_config_data_set_or_folder(experiment, config_path, run, tmp_path):
    root = shutil.copytree(config_path.parent / "sample", tmp_path / "sample")
    path = root / "annotations/instances_val.json"
    path.write_text(path.read_text().replace('"ring"', '"torus"'))
    for words, named in (
        ((experiment, "model.neck=fpn"), "missing: neck."),
        ((experiment, f"data.root={root}"), "'torus'"),
        ((experiment / "config.yaml",), "config.yaml: is a file; expected a directory"),
        ((tmp_path,), "an experiment directory"),
    ):
        assert named in run("detection.evaluate", *words, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    error = run("detection.training", config_path, f"data.root={root}", "--experiments", tmp_path / "e", code=2)
    assert "must list the same classes" in error


CONFIGS = [path for path in sorted((ROOT / "configs").glob("[!g]*.yaml")) if "backbone:" in path.read_text()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_detector(path):
    config = load_config(path, ["model.weights=null"], DetectionConfig)
    model = config.model
    if model.anchor_scales == AUTO:  # needs the data
        model = model.model_copy(update={"anchor_scales": "ssd"})
    assert build_ssd(model, 80, config.loss.score_function).anchors_cxcywh.shape[1] == 4


GRIDS = [path for path in sorted((ROOT / "configs").glob("grid_*.yaml")) if "detection.training" in path.read_text()]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_run_of_a_grid_has_a_valid_config(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for job in read_grid(path).jobs:
        load_config(job.config, job.overrides, DetectionConfig)


def test_the_grid_of_timm_backbones_names_weights_trained_on_imagenet_1k_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    pytest.importorskip("timm")
    for job in read_grid(ROOT / "configs/grid_backbones.yaml").jobs:
        model = load_config(job.config, job.overrides, DetectionConfig).model
        assert model.weights in tags_of(model.backbone.removeprefix("timm/"))
        assert re.fullmatch("[a-z0-9]+_in1k", model.weights)  # "..._in22k_ft_in1k" lists two data sets


def test_training_warns_if_the_scores_cannot_reach_1(config_path, tmp_path, caplog):
    root = tmp_path / "sample"
    shutil.copytree(config_path.parent / "sample", root)
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    empty = {"image_id": content["images"][0]["id"], "category_id": 1, "bbox": [0, 0, 0, 0]}
    content["annotations"] += [{"id": 900 + k} | empty for k in range(2)]
    path.write_text(json.dumps(content))
    task = build_task(load_config(config_path, [f"data.root={root}", "eval.max_detections=1"], DetectionConfig), False)
    announce(task)
    ceiling, limit = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ceiling.startswith(f"{path}: 2 boxes without area count as missed: mAP cannot exceed 0.")
    assert "eval.max_detections (1) in 5 images; raise it" in limit


@pytest.mark.parametrize(
    ("scored", "expected"),
    [
        ("val", []),
        ("seven", ["the run used different annotations", "at least 7 of 7 validation images"]),
    ],
)
def test_scoring_training_images_gives_warnings(config_path, seven, tmp_path, caplog, scored, expected):
    config = load_config(config_path, (), DetectionConfig)
    train, val = (read_split(config.data, split) for split in ("train", "val"))
    identify_inputs(config.data, train, val).write(tmp_path)
    with caplog.at_level("WARNING", logger="workbench"):
        warn_about_data(tmp_path, val if scored == "val" else read_coco(seven, train.images_dir))
    assert len(caplog.messages) == len(expected)
    assert all(part in message for part, message in zip(expected, caplog.messages, strict=True))
