"""Ranks that die or hang, jobs side by side, and scores on any number of processes."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from detection.shapes import generate
from engine import distributed

pytestmark = pytest.mark.slow

# Ranks that meet again and again, and wait for each other no longer than 20 seconds.
MEET = """
import sys, time
from datetime import timedelta
from engine import distributed
from engine.command import run_command

def main(device):
    for count in range(int(sys.argv[1])):
        distributed.any_rank(False)
        sys.stdout.write(f"met {count}\\n")  # at once, for ranks share the file
        sys.stdout.flush()
        time.sleep(0.05)

distributed.TIMEOUT = timedelta(seconds=20)
run_command(main)
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(scope="module", autouse=True)
def hung(start, tmp_path_factory) -> tuple:
    """A job with a rank that has hung since the given time. It takes long to end: the other tests run meanwhile."""
    job = start(write(tmp_path_factory.mktemp("hung") / "meet.py", MEET), 10_000, processes=2)
    job.wait_for("met 3")
    os.kill(job.rank(1), signal.SIGSTOP)
    return job, time.monotonic()


def test_a_rank_that_is_killed_ends_the_job_before_a_collective_times_out(start, config_path, tmp_path):
    job = start("-m", "detection.training", config_path, "--experiment", tmp_path, processes=2)
    job.wait_for("first step")
    os.kill(job.rank(1), signal.SIGKILL)
    assert job.end(distributed.TIMEOUT.total_seconds() / 2) == 1
    assert "another process of this run died" in "".join(job.errors)
    assert "SIGKILL" in job.text  # in torchrun's report


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["model.neck=fnp"], "fnp"),
        (["--nope"], "--nope"),
        (["data.root=/nowhere"], "/nowhere/"),
    ],
)
def test_an_error_of_all_ranks_is_reported_once(start, config_path, tmp_path, words, error):
    job = start("-m", "detection.training", config_path, "--experiments", tmp_path / "e", *words, processes=3)
    assert job.end() == 1
    [line] = job.errors
    assert error in line
    assert not (tmp_path / "e").exists()


def test_a_loader_process_that_freezes_ends_the_run(start, config_path, tmp_path):
    script = write(
        tmp_path / "train.py",
        "import data, detection.training\n"
        "from engine.start import start\n"
        "data.LOADER_TIMEOUT_SECONDS, data.LOADER_GRACE_SECONDS = 10, 10\n"
        "start(detection.training.parse_arguments, detection.training.main)\n",
    )
    job = start(script, config_path, "--experiment", tmp_path, "data.workers=1", "train.epochs=500")
    job.wait_for("first step")
    [worker] = job.children()
    os.kill(worker, signal.SIGSTOP)
    assert job.end() == 1
    [line] = job.errors
    assert "Lower data.workers" in line
    assert "Traceback" not in job.text


@pytest.fixture(scope="module")
def learned(start, config_path, tmp_path_factory) -> Path:
    """An experiment that is scored on the seven images it was trained on."""
    root = tmp_path_factory.mktemp("seven")
    generate(root, num_train=7, num_val=7, image_size=96)
    same = "{images: images/train, annotations: annotations/instances_train.json}"
    experiment = root / "experiment"
    experiment.mkdir()
    job = start(
        "-m", "detection.training", config_path, "--experiment", experiment, f"data.root={root}", f"data.val={same}",
        "data.workers=0", "augment.photometric=false", "augment.zoom_out=1.0", "augment.crop_min_scale=1.0",
        "optim.learning_rate=2e-3", "train.ema_decay=null", "train.epochs=20", "train.eval_every_epochs=20",
        "train.batch_size=2", "train.batch_norm=local", "train.keep_checkpoints=1",
    )  # fmt: skip
    assert job.end() == 0, job.text
    return experiment


def test_the_score_of_a_checkpoint_is_the_same_to_the_last_byte_on_1_5_and_8_processes(start, learned, tmp_path):
    texts = []
    for count in (1, 5, 8):
        experiment = tmp_path / str(count)
        shutil.copytree(learned, experiment)
        job = start("-m", "detection.evaluate", experiment, "train.batch_size=1", processes=count)
        assert job.end() == 0, job.text
        texts.append((experiment / "test.json").read_text())
    assert texts[0] == texts[1] == texts[2]
    assert json.loads(texts[0])["settings"][0]["mAP"] > 0.01


def test_a_rank_that_hangs_ends_the_job_after_the_timeout_and_the_30_seconds_that_torchrun_gives_it(hung):
    job, began = hung
    assert job.end() == 1
    assert time.monotonic() - began > 20
    assert "another process of this run died or hangs" in "".join(job.errors)
    assert "a bug" not in job.text
