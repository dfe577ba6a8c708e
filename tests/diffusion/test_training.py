"""The command diffusion.training: its record, exact resumption, and equal scores on any number of processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.generator import load_generator
from diffusion.task import DiffusionTask
from diffusion.training import build_task
from engine.checkpoint import list_checkpoints, load_checkpoint
from engine.signals import Stopped
from records.metrics import read_metrics
from stats.image_statistics import load_statistics

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def test_a_run_writes_its_complete_record(experiment):
    names = {path.name for path in experiment.iterdir()}
    assert names == {
        "README.md", "config.yaml", "environment.json", "inputs.json", "train.log", "metrics.jsonl",
        "curves.png",
        "results.json", "image_statistics.npz", "samples", "samples.png", "checkpoints", "running.lock", "status.json",
    }  # fmt: skip
    assert sorted(path.name for path in (experiment / "samples").iterdir()) == ["epoch_001.png", "epoch_002.png"]
    assert (experiment / "samples/epoch_002.png").read_bytes() == (experiment / "samples.png").read_bytes()
    record = json.loads((experiment / "results.json").read_text())
    assert record["task"] == "diffusion"
    assert record["lower_is_better"]
    assert record["cost"]["gflops"] > 0
    assert record["per_class"]["3"]["images"] == 2
    losses = load_statistics(experiment).losses
    assert read_metrics(experiment)[-1]["val_loss"] == record["scores"]["val_loss"] == losses.mean()
    assert "](samples.png)" in (experiment / "README.md").read_text()


def test_samples_of_a_model_of_colour_images_are_in_colour(coloured_experiment):
    record = json.loads((coloured_experiment / "results.json").read_text())
    assert [name for name, scores in record["per_class"].items() if scores["images"]] == ["cat", "truck"]
    with Image.open(coloured_experiment / "samples.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[2] == 3
    assert (pixels[..., 0] != pixels[..., 1]).any()


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two runs have equal weights, raw and averaged, equal losses and equal samples."""
    states = [load_checkpoint(list_checkpoints(path / "checkpoints")[-1]) for path in (one, other)]
    assert states[0]["step"] == states[1]["step"]
    for weights in ([state["model"] for state in states], [state["ema"]["weights"] for state in states]):
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (one / "samples.png").read_bytes() == (other / "samples.png").read_bytes()
    assert np.array_equal(load_statistics(one).losses, load_statistics(other).losses)


def test_a_run_resumed_after_a_signal_in_mid_epoch_ends_as_the_uninterrupted_one(
    experiment, config_path, run_training, tmp_path, monkeypatch
):
    losses, calls = DiffusionTask.losses, []

    def losses_and_a_signal(*arguments):
        calls.append(arguments)
        if len(calls) == 7:  # of 10
            signal.raise_signal(signal.SIGUSR1)
        return losses(*arguments)

    monkeypatch.setattr(DiffusionTask, "losses", losses_and_a_signal)
    with pytest.raises(Stopped):
        run_training(config_path, "--experiments", tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path / "experiment_1/checkpoints")][-1] == "step_000000007.pt"
    run_training("--resume", tmp_path / "experiment_1")
    assert len(calls) == 10
    assert_same_run(tmp_path / "experiment_1", experiment)


SCORE = """
import sys
from pathlib import Path
import numpy as np
from diffusion.generator import load_generator
from diffusion.training import build_task
from engine import distributed
from engine.command import run_command

def main(device):
    generator = load_generator(Path(sys.argv[1]))
    task = build_task(generator.config, True)
    scores, outputs = task.evaluate(generator.model, device)
    if distributed.is_main():
        np.savez(sys.argv[2], score=scores["val_loss"], losses=outputs.losses, samples=outputs.samples)

if __name__ == "__main__":
    run_command(main)
"""


def test_losses_and_samples_are_the_same_on_1_and_2_processes(experiment, tmp_path):
    script = tmp_path / "score.py"
    script.write_text(SCORE)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = [sys.executable, *launcher, str(script), str(experiment), str(tmp_path / "two.npz")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    generator = load_generator(experiment)
    task: DiffusionTask = build_task(generator.config, True)
    scores, outputs = task.evaluate(generator.model, torch.device("cpu"))
    two = np.load(tmp_path / "two.npz")
    assert two["score"] == scores["val_loss"]
    assert np.array_equal(two["losses"], outputs.losses)
    assert np.array_equal(two["samples"], outputs.samples)
