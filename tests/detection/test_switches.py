"""Every switch of the recipe, at every level: training, resuming, any number of ranks, and the tables of comparisons.

tests/faults/test_distributed.py scores detectors of several recipes on any number of processes, and
tests/detection/test_export.py exports them."""

import html
import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import detection.evaluate
import detection.export
import detection.training
from ablation import compare
from ablation.config_classes import default_values
from ablation.recipes import as_override
from detection.coco.annotations import read_coco
from detection.coco.dataset import collate
from detection.network.loss import Criterion, LossConfig
from detection.recipe import PARTS
from detection.task import DetectionConfig, with_fitted_scales
from detection.training import build_task
from engine.checkpoint import load_checkpoint, step_path
from engine.config import dump_config, leaves, load_config
from engine.text import shown
from records.metrics import read_metrics
from tests.ablation.conftest import Experiments
from tests.detection.switches import COMBINATIONS, IMPOSSIBLE, RECIPES, REFERENCE, SWITCHES
from tests.faults.conftest import Job
from training import fit

CPU = torch.device("cpu")

# Three steps per epoch.
CONFIG = """
data:
  root: {root}
  train: {{images: images/train, annotations: annotations/instances_train.json}}
  val: {{images: images/val, annotations: annotations/instances_val.json}}
  workers: 0
model: {{backbone: ResNet18SlimBackbone_B, neck: fpn, neck_channels: 16, input_size: 96}}
optim: {{optimizer: adamw, learning_rate: 1e-3, reference_batch_size: 4, warmup_epochs: 1, schedule: cosine}}
train: {{epochs: 2, batch_size: 4, precision: fp32, checkpoint_every_steps: 2, keep_checkpoints: 9,
  eval_every_epochs: 2}}
eval: {{score_threshold: 0.001}}
"""


@pytest.fixture(scope="module")
def config_path(sample_root, tmp_path_factory) -> Path:
    """Write a config of the reference recipe that does not contain the switches."""
    path = tmp_path_factory.mktemp("switches") / "config.yaml"
    path.write_text(CONFIG.format(root=sample_root))
    return path


def fitted_config(config_path, overrides, root) -> DetectionConfig:
    """Return a config as a run records it: anchor_scales auto is replaced by numbers."""
    train = read_coco(root / "annotations/instances_train.json", root / "images/train")
    return with_fitted_scales(load_config(config_path, overrides, DetectionConfig), train)


# ---- the reference ---------------------------------------------------------------------------------------------


def test_a_config_without_the_switches_is_the_reference_recipe(config_path):
    assert load_config(config_path, REFERENCE, DetectionConfig) == load_config(config_path, [], DetectionConfig)
    assert LossConfig().model_dump() | {"cells_per_level": ()} == vars(Criterion(()))


def test_the_switches_and_their_levels_are_those_of_the_config():
    schema = DetectionConfig.model_json_schema()["$defs"]
    for section, name in (("LossConfig", "loss"), ("AugmentConfig", "augment"), ("ModelConfig", "model")):
        for field, entry in schema[section]["properties"].items():
            if "enum" in entry and f"{name}.{field}" != "model.freeze":
                assert list(map(str, entry["enum"])) == list(SWITCHES[f"{name}.{field}"])
    assert tuple(SWITCHES) == PARTS
    defaults = default_values(DetectionConfig)
    assert [f"{field}={as_override(defaults[field])}" for field in SWITCHES] == list(REFERENCE)


# ---- combinations that do not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", IMPOSSIBLE, ids=" ".join)
def test_levels_that_do_not_fit_are_a_one_line_error_that_names_both(pair, config_path, run_in_process, tmp_path):
    overrides = [override for override in pair if override not in REFERENCE]
    code, _, [error] = run_in_process(
        detection.training, config_path, *overrides, "--experiments", tmp_path / "experiments"
    )
    assert code == 2
    (field, value), (_, classification) = (override.removeprefix("loss.").split("=") for override in pair)
    assert f"loss: {field} {value} needs classification" in error
    assert f"not {classification}" in error
    assert not (tmp_path / "experiments").exists()


def test_all_other_combinations_of_losses_are_valid(config_path):
    fields = [field for field in SWITCHES if field.startswith("loss.")]
    combinations = [
        [f"{field}={value}" for field, value in zip(fields, values, strict=True)]
        for values in itertools.product(*(SWITCHES[field] for field in fields))
    ]
    valid = [each for each in combinations if not any(set(pair) <= set(each) for pair in IMPOSSIBLE)]
    assert len(valid) == 3 * (2 * 2 + 2 + 3)  # three box losses; multibox (none, pisa), focal, quality_focal
    for overrides in valid:
        load_config(config_path, overrides, DetectionConfig)


# ---- training and resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", RECIPES.values(), ids=RECIPES)
def test_a_run_resumed_within_an_epoch_ends_like_the_uninterrupted_run(overrides, config_path, tmp_path, monkeypatch):
    monkeypatch.setattr("training.draw_curves", lambda *_: None)
    task = build_task(load_config(config_path, overrides, DetectionConfig), False)
    whole, recorded = tmp_path / "whole", tmp_path / "config.yaml"
    recorded.write_text(dump_config(task.config))
    fit(task, whole, CPU, resume=False)
    lines, expected = read_metrics(whole), load_checkpoint(step_path(whole / "checkpoints", 6))
    assert [line["step"] for line in lines] == [3, 6]
    for step in (2, 4):  # in the first epoch, which has mosaics if any has, and in the second, which has none
        part = tmp_path / f"from_{step}"
        (part / "checkpoints").mkdir(parents=True)
        shutil.copy(step_path(whole / "checkpoints", step), part / "checkpoints")
        fit(build_task(load_config(recorded, [], DetectionConfig), True), part, CPU, resume=True)
        found = load_checkpoint(step_path(part / "checkpoints", 6))
        for key in ("model", "ema", "optimizer", "scheduler"):
            assert_equal(found[key], expected[key])
        assert [without_times(line) for line in read_metrics(part)] == list(map(without_times, lines))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_commands_train_resume_score_and_export(overrides, config_path, tmp_path, run_in_process):
    def run(module, *words) -> str:
        code, output, errors = run_in_process(module, *words)
        assert (code, errors) == (0, [])
        return output

    (tmp_path / "whole").mkdir()
    run(detection.training, config_path, *overrides, "--experiment", tmp_path / "whole")
    for name in ("config.yaml", "environment.json", "checkpoints/step_000000002.pt"):  # as if it had been killed
        (tmp_path / "part" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "whole" / name, tmp_path / "part" / name)
    run(detection.training, config_path, *overrides, "--resume", tmp_path / "part")
    whole, part = ((tmp_path / name / "detections.json").read_text() for name in ("whole", "part"))
    assert part == whole
    assert json.loads(part)
    run(detection.evaluate, tmp_path / "part")
    [scores] = json.loads((tmp_path / "part/test.json").read_text())["settings"]
    assert scores.items() >= json.loads((tmp_path / "whole/results.json").read_text())["scores"].items()
    for file in ("detector.onnx", "detector.pt2"):
        assert "; 0 differ" in run(detection.export, tmp_path / "part", "--output", tmp_path / file)


def without_times(line: dict) -> dict:
    return {name: value for name, value in line.items() if "second" not in name}


def assert_equal(found: object, expected: object) -> None:
    """Assert that nested data and tensors are bitwise equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_equal(*pair)
    else:
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


# ---- any number of ranks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", RECIPES.values(), ids=RECIPES)
def test_losses_and_gradients_of_a_batch_are_the_sums_over_its_shares(overrides, config_path):
    task = build_task(load_config(config_path, overrides, DetectionConfig), False)
    samples = [task.train_set[0, index] for index in range(12)]
    samples[0] |= {"boxes_xyxy": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    generator = torch.Generator().manual_seed(0)
    shape = (len(samples), len(task.model.anchors_cxcywh))
    outputs = [torch.randn(*shape, columns, generator=generator) for columns in (4, task.model.logits_per_box)]
    for output in outputs:
        output.requires_grad_()

    def losses_of(first: int, end: int) -> tuple[dict, torch.Tensor]:
        """Return losses and count of some samples, padded on their own, with the outputs for them."""
        return task.losses(lambda images: [output[first:end] for output in outputs], collate(samples[first:end]))

    sums, count = losses_of(0, 12)
    assert set(sums) == {"classification", "box"} | ({"box_by_score"} if "loss.reweight=pisa" in overrides else set())
    assert count > 1
    gradients = torch.autograd.grad(sum(sums.values()), outputs)
    for bounds in ((0, 6, 12), (0, 4, 8, 12), (0, 1, 12)):  # the last one has a share without objects
        shares = [losses_of(*pair) for pair in itertools.pairwise(bounds)]
        torch.testing.assert_close(sum(each for _, each in shares), count, rtol=1e-6, atol=0)
        for name, value in sums.items():
            torch.testing.assert_close(sum(each[name] for each, _ in shares), value, rtol=1e-5, atol=0)
        total = sum(sum(each.values()) for each, _ in shares)
        torch.testing.assert_close(torch.autograd.grad(total, outputs), gradients, rtol=1e-5, atol=1e-6)


# Trains two steps of each recipe, in one process group.
DRY_RUNS = """
import sys
import detection.training
from engine.command import run_command

def main(device):
    config, batch_size, *recipes = sys.argv[1:]
    for recipe in recipes:
        words = [config, *recipe.split(";"), "train.batch_size=" + batch_size, "--dry-run"]
        detection.training.main(detection.training.parse_arguments(words), device)

run_command(main)
"""


@pytest.mark.slow
def test_the_first_step_is_the_same_on_1_2_and_3_processes(config_path, tmp_path):
    (tmp_path / "dry_runs.py").write_text(DRY_RUNS)
    steps = {}
    for count in (1, 2, 3):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count > 1 else []
        recipes = [";".join((*overrides, "train.batch_norm=frozen")) for overrides in COMBINATIONS.values()]
        words = [*launcher, str(tmp_path / "dry_runs.py"), str(config_path), str(6 // count), *recipes]
        job = Job(words, tmp_path / f"{count}.log")
        assert job.end() == 0, job.text
        lines = re.findall("first step: (.*)", job.text)
        steps[count] = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines]
    assert [len(numbers) for numbers in steps[1]] == [5, 4]  # total, classification, box, with pisa box_by_score, norm
    for count in (2, 3):
        for found, expected in zip(steps[count], steps[1], strict=True):
            assert found == pytest.approx(expected, rel=1e-4)


# ---- comparisons -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", SWITCHES)
def test_the_tables_of_a_comparison_show_the_levels(field, config_path, sample_root, tmp_path, run_in_process):
    experiments, values = Experiments(tmp_path), []
    for value, needed in SWITCHES[field].items():
        config = fitted_config(config_path, [f"{field}={value}", *needed], sample_root)
        values.append(dict(leaves(config.model_dump(mode="json")))[field])
        experiments.add("a", quality=0.3 + 0.2 * len(values))
        (tmp_path / f"experiment_{len(values)}/config.yaml").write_text(dump_config(config))
    paths, report = sorted(tmp_path.iterdir()), tmp_path / "report.html"
    for form in ("md", "latex", "html"):
        words = ["--format", form, "--replicates", 100, *(["--output", report] if form == "html" else [])]
        code, text, errors = run_in_process(compare, *paths, *words)
        assert (code, errors) == (0, [])
        if form == "html":
            text = html.unescape(re.sub("<[^>]*>", "", report.read_text()))
        text = re.sub(r"[\\{}]", "", text)  # of LaTeX
        for value in values:
            # in the name of the row, unless that would be too long
            assert f"{field} {shown(value)}" in text or "a (experiment_1)" in text
        for value in values[1:]:
            assert f"{field}={as_override(value)}" in text  # in the recipes
