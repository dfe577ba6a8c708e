"""Losses and gradients that are not finite, and batches without objects, on several ranks."""

import json
import math
import re
from pathlib import Path

import pytest

from engine.checkpoint import list_checkpoints, load_checkpoint
from records.metrics import read_metrics

pytestmark = pytest.mark.slow

# Trains like `python -m detection.training`, with the fault that the first argument names. Prints the image with the
# fault, and a hash of the final weights of each rank.
SCRIPT = """
import hashlib, os, sys
import detection.training
import runs
from detection.task import DetectionTask
from engine import distributed
from engine.start import start

fault, losses, fit = sys.argv.pop(1), DetectionTask.losses, runs.fit
calls = 0

def faulty(self, model, batch):
    global calls
    calls += 1
    sums, count = losses(self, model, batch)
    if distributed.rank() == 1 and calls == 5:
        sys.stdout.write(f"fault in {batch['image_ids'].item()}\\n")
        sums["box"] = sums["box"] * float("nan") if fault == "gradient" else sums["box"] + float("inf")
    return sums, count

def fit_and_print(task, *arguments):
    result = fit(task, *arguments)
    weights = b"".join(value.numpy().tobytes() for value in task.model.state_dict().values())
    sys.stdout.write(f"weights {hashlib.sha256(weights).hexdigest()}\\n")  # one write, because ranks share the file
    return result

if fault != "none":
    DetectionTask.losses = faulty
runs.fit = fit_and_print
start(detection.training.parse_arguments, detection.training.main)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("fault", ["gradient", "loss"])
def test_a_loss_or_gradient_that_is_not_finite_on_one_rank_stops_both_ranks(
    start, script, config_path, tmp_path, fault
):
    job = start(
        script, fault, config_path, "--experiment", tmp_path, "data.workers=0", "train.checkpoint_every_steps=1",
        processes=2,
    )  # fmt: skip
    assert job.end() == 1
    image_id = re.search(r"^fault in (\d+)$", job.text, re.MULTILINE)[1]
    [line] = job.errors  # from the rank that fails first
    assert "step 5: loss or gradient is not finite; rank 1: " in line
    assert f"image ids [{image_id}]" in line
    assert not re.search(r"^weights ", job.text, re.MULTILINE)  # no rank has finished training
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert newest.name == "step_000000004.pt"
    assert_finite(load_checkpoint(newest))


def assert_finite(state: dict) -> None:
    """Assert that the weights and their moving average in a checkpoint are finite."""
    for weights in (state["model"], state["ema"]["weights"]):
        assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())


def test_ranks_keep_identical_weights_after_batches_without_objects(start, script, config_path, tmp_path):
    path = config_path.parent / "sample/annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][:72]
    annotated = content["images"][0]["id"]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] == annotated]
    (tmp_path / "train.json").write_text(json.dumps(content))
    job = start(
        script, "none", config_path, "--experiment", tmp_path, "data.workers=0", "train.eval_every_epochs=1",
        f"data.train={{images: images/train, annotations: {tmp_path / 'train.json'}}}",
        processes=2,
    )  # fmt: skip
    assert job.end() == 0, job.text
    weights = re.findall(r"weights (\w{64})", job.text)
    assert len(weights) == 2
    assert len(set(weights)) == 1
    lines = read_metrics(tmp_path)
    assert lines[-1]["step"] == 72
    assert all(math.isfinite(line["train_loss_total"]) for line in lines)
    assert_finite(load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1]))
