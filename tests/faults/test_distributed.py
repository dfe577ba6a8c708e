"""Ranks that die or hang, and identical scores on any number of processes."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from engine import distributed
from tests.conftest import write_finished_detector

pytestmark = pytest.mark.slow

# Ranks that run one collective after another, with a timeout of 20 seconds.
COLLECTIVES = """
import sys, time
from datetime import timedelta
from engine import distributed
from engine.command import run_command

def main(device):
    for count in range(int(sys.argv[1])):
        distributed.any_rank(False)
        sys.stdout.write(f"collective {count}\\n")  # one write, because ranks share the file
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
    """Return a job with a hung rank, and the time since when. Other tests run while it waits for its timeout."""
    job = start(write(tmp_path_factory.mktemp("hung") / "collectives.py", COLLECTIVES), 10_000, processes=2)
    job.wait_for("collective 3")
    os.kill(job.rank(1), signal.SIGSTOP)
    return job, time.monotonic()


def test_a_killed_rank_ends_the_job_before_a_collective_times_out(start, config_path, tmp_path):
    job = start("-m", "detection.training", config_path, "--experiment", tmp_path, processes=2)
    job.wait_for("first step")
    os.kill(job.rank(1), signal.SIGKILL)
    assert job.end(distributed.TIMEOUT.total_seconds() / 2) == 1
    assert "another process of this run died" in "".join(job.errors)
    assert "SIGKILL" in job.text  # from torchrun's report


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["model.neck=fnp"], "fnp"),
        (["--nope"], "--nope"),
        (["data.root=/nowhere"], "/nowhere/"),
    ],
)
def test_an_error_of_all_ranks_is_reported_once(start, config_path, tmp_path, words, error):
    job = start("-m", "detection.training", config_path, "--experiments", tmp_path / "e", *words, processes=2)
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
    [worker] = job.processes() - {job.process.pid}
    os.kill(worker, signal.SIGSTOP)
    assert job.end() == 1
    [line] = job.errors
    assert "lower data.workers" in line
    assert "Traceback" not in job.text


# Scores several experiments in one process group.
EVALUATIONS = """
import sys
from detection.evaluate import main, parse_arguments
from engine.command import run_command

def evaluate_all(device):
    for experiment in sys.argv[1:]:
        many = ["eval.score_threshold=0.01", "eval.max_detections=1000"]
        main(parse_arguments([experiment, "train.batch_size=1", *many]), device)

run_command(evaluate_all)
"""


def test_scores_are_byte_identical_on_any_number_of_processes(start, finished_detector, tmp_path):
    """With three images, two processes get different numbers of images, and two of five processes get none."""
    fitted = [
        write_finished_detector(
            tmp_path / name, model={"head_tower": 2, "anchor_scales": "auto"}, loss={"classification": name}
        )
        for name in ("multibox", "quality_focal")
    ]
    experiments = []
    for detector in (finished_detector, *fitted):
        annotations = detector.parent.parent / "sample/annotations/instances_val.json"
        content = json.loads(annotations.read_text())
        content["images"] = content["images"][:3]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in ids]
        experiment = shutil.copytree(detector, tmp_path / f"experiment_{len(experiments)}")
        three = write(experiment / "three.json", json.dumps(content))
        text = (experiment / "config.yaml").read_text()
        (experiment / "config.yaml").write_text(text.replace("annotations/instances_val.json", str(three)))
        experiments.append(experiment)
    script, texts = write(tmp_path / "evaluations.py", EVALUATIONS), set()
    for count in (1, 2, 3, 5):
        job = start(script, *experiments, processes=count)
        assert job.end() == 0, job.text
        texts.add(tuple((experiment / "test.json").read_text() for experiment in experiments))
    assert len(texts) == 1
    scores = [json.loads(text) for text in texts.pop()]
    assert [each["score_function"] for each in scores] == ["softmax", "softmax", "sigmoid"]
    assert all(each["settings"][0]["mAP"] > 0 for each in scores)


def test_a_hung_rank_ends_the_job_after_the_timeout(hung):
    job, started = hung
    assert job.end() == 1
    assert time.monotonic() - started > 20
    assert "another process of this run died or hangs" in "".join(job.errors)
    assert "a bug" not in job.text
