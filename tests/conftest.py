"""Fixtures that several test modules share."""

import json
import logging
import os
import pickle
import signal
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fileserver import FileServer

ROOT = Path(__file__).parent.parent
os.environ["OMP_NUM_THREADS"] = "1"  # of every process that a test starts


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """One thread in every test: sums depend on their number, and threads that wait for each other spin."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real COCO-format sets, ../shared/data beside the clone or $WORKBENCH_TEST_DATA; skipped where absent."""
    path = Path(os.environ.get("WORKBENCH_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path} (set WORKBENCH_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """A tiny sample data set: 12 images to train on, 8 to validate."""
    from detection.shapes import generate

    root = tmp_path_factory.mktemp("sample")
    generate(root, num_train=12, num_val=8, image_size=128)
    return root


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory) -> Path:
    """MNIST's files with 40 images to train on and 20 to validate: digit d is a bright bar, further right for each."""
    root = tmp_path_factory.mktemp("mnist")
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for half, count in (("train", 40), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 30, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 4 + 2 * label : 7 + 2 * label] = 250
        (folder / f"{half}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels.tobytes())
    return root


@pytest.fixture(scope="session")
def finished_detector(tmp_path_factory) -> Path:
    """A finished experiment of a detector that learned nothing but is sure of much: detections of all scores.

    Scored on 12 images of 160 x 160 pixels; its annotation file's category ids have gaps."""
    from detection.coco.annotations import read_split
    from detection.record import record
    from detection.shapes import generate
    from detection.task import DetectionConfig, DetectionTask
    from engine.checkpoint import save_checkpoint, step_path
    from engine.config import dump_config
    from records.record import write_record

    root = tmp_path_factory.mktemp("finished")
    generate(root / "sample", num_train=2, num_val=12, image_size=160)
    config = DetectionConfig.model_validate(
        {
            "data": {
                "root": str(root / "sample"),
                "train": {"images": "images/train", "annotations": "annotations/instances_train.json"},
                "val": {"images": "images/val", "annotations": "annotations/instances_val.json"},
                "workers": 0,
            },
            "model": {"backbone": "ResNet18SlimBackbone_B", "neck": "fpn", "neck_channels": 32, "input_size": 96},
            "train": {"epochs": 1, "batch_size": 8},
            "eval": {"score_threshold": 0.3, "max_detections": 50},
        }
    )
    task = DetectionTask(config, read_split(config.data, "train"), read_split(config.data, "val"))
    for convolution in task.model.class_head:
        torch.nn.init.normal_(convolution.weight, std=0.05, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(convolution.bias)
    experiment = root / "experiments/experiment_7"
    (experiment / "checkpoints").mkdir(parents=True)
    (experiment / "config.yaml").write_text(dump_config(config))
    state = {"model": task.model.state_dict(), "ema": None, "step": 3, "data": task.data}
    save_checkpoint(step_path(experiment / "checkpoints", 3), state)
    versions = {"torch": "2", "torchvision": "0", "python": "3"}
    start = {"processes": 1, "device": "cpu", "cpu": "a CPU", "commit": "abc", "uncommitted_changes": False}
    (experiment / "environment.json").write_text(json.dumps([start | {"versions": versions, "started_from": None}]))
    line = {"epoch": 1, "step": 3, "epoch_seconds": 2.0, "images_per_second": 6.0, "mAP": 0.0}
    (experiment / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_record(experiment, task, record(experiment, task, task.evaluate(task.model, torch.device("cpu"))))
    return experiment


@pytest.fixture(scope="session")
def cifar10_root(tmp_path_factory) -> Path:
    """CIFAR-10's files with two images in each."""
    root = tmp_path_factory.mktemp("cifar10")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    rng = np.random.default_rng(0)
    for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 9]}))
    return root


@pytest.fixture
def file_server(monkeypatch):
    """A local server of files; downloads from it are tried again at once."""
    monkeypatch.setattr("weights.download.WAIT_SECONDS", 0.0)
    monkeypatch.setattr("weights.download.TIMEOUT_SECONDS", 5.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FileServer()
    yield server
    server.stop()


@pytest.fixture
def compiler_cache(tmp_path, monkeypatch):
    """torch.compile's files of this test alone: those that a killed process has left half-written crash the next."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


@pytest.fixture
def run_in_process(monkeypatch, capsys):
    """Runs a command's module here as `python -m` would; gives its exit code, what it printed and its errors."""
    from engine.start import start

    monkeypatch.setattr("engine.start.fit_threads", lambda: None)  # it would change the environment of later tests

    def run(module, *words):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        code = 0
        try:
            start(module.parse_arguments, module.main)
        except SystemExit as exit_:
            code = exit_.code or 0
        captured = capsys.readouterr()
        return code, captured.out, [line for line in captured.err.splitlines() if "error" in line]

    return run


@pytest.fixture(autouse=True)
def _commands_leave_no_trace(monkeypatch):
    """A command leaves at once, by os._exit, and has its own way to log; the process that runs the tests does not."""
    monkeypatch.setattr("engine.command._leave", sys.exit)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logger = logging.getLogger("workbench")
    logger.propagate = True
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal():
    """Whoever runs the tests in the background, or by nohup, had signals ignored, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
