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
os.environ["OMP_NUM_THREADS"] = "1"  # for every process that a test starts


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Use one thread in every test: sums depend on the number of threads, and waiting threads take CPU time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real COCO-format data: $WORKBENCH_TEST_DATA or ../shared/data; skip if it is missing."""
    path = Path(os.environ.get("WORKBENCH_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path} (set WORKBENCH_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """Return the folder of a tiny sample data set: 12 training and 8 validation images."""
    from detection.shapes import generate

    root = tmp_path_factory.mktemp("sample")
    generate(root, num_train=12, num_val=8, image_size=128)
    return root


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory) -> Path:
    """Return a folder in MNIST's format: 40 training and 20 validation images; digit d is a bar at column 4 + 2d."""
    root = tmp_path_factory.mktemp("mnist")
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 30, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 4 + 2 * label : 7 + 2 * label] = 250
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels.tobytes())
    return root


@pytest.fixture(scope="session")
def finished_detector(tmp_path_factory) -> Path:
    """Return a finished experiment of an untrained detector, whose random class heads give detections of all scores.

    It is evaluated on 12 images of 160 x 160 pixels. The category ids of its annotation file have gaps."""
    return write_finished_detector(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def modern_detector(tmp_path_factory) -> Path:
    """Return a finished experiment like finished_detector, but with towers in the heads and sigmoid scores."""
    root = tmp_path_factory.mktemp("modern")
    changes = {"model": {"head_tower": 2}, "loss": {"classification": "quality_focal"}, "eval": {"max_detections": 600}}
    return write_finished_detector(root, **changes)


def write_finished_detector(root: Path, **changes: dict) -> Path:
    """Write data and a finished experiment to a folder. changes: sections of the config with their changed fields."""
    from detection.coco.annotations import read_split
    from detection.record import record
    from detection.shapes import generate
    from detection.task import DetectionConfig, DetectionTask
    from engine.checkpoint import save_checkpoint, step_path
    from engine.config import dump_config
    from records.record import write_record

    generate(root / "sample", num_train=2, num_val=12, image_size=160)
    model = {"backbone": "ResNet18SlimBackbone_B", "neck": "fpn", "neck_channels": 32, "input_size": 96}
    config = DetectionConfig.model_validate(
        {
            "data": {
                "root": str(root / "sample"),
                "train": {"images": "images/train", "annotations": "annotations/instances_train.json"},
                "val": {"images": "images/val", "annotations": "annotations/instances_val.json"},
                "workers": 0,
            },
            "model": model | changes.get("model", {}),
            "loss": changes.get("loss", {}),
            "train": {"epochs": 1, "batch_size": 8},
            "eval": {"score_threshold": 0.3, "max_detections": 50} | changes.get("eval", {}),
        }
    )
    task = DetectionTask(config, read_split(config.data, "train"), read_split(config.data, "val"))
    for convolution in task.model.class_head:
        torch.nn.init.normal_(convolution.weight, std=0.05, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(convolution.bias)
    experiment = root / "experiments/experiment_7"
    (experiment / "checkpoints").mkdir(parents=True)
    (experiment / "config.yaml").write_text(dump_config(task.config))
    state = {"model": task.model.state_dict(), "ema": None, "step": 3, "data": task.data}
    save_checkpoint(step_path(experiment / "checkpoints", 3), state)
    versions = {"torch": "2", "torchvision": "0", "python": "3"}
    start = {"processes": 1, "device": "cpu", "cpu": "a CPU", "commit": "abc", "uncommitted_changes": False}
    (experiment / "environment.json").write_text(json.dumps([start | {"versions": versions, "initial_weights": None}]))
    line = {"epoch": 1, "step": 3, "epoch_seconds": 2.0, "images_per_second": 6.0, "mAP": 0.0}
    (experiment / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_record(experiment, task, record(experiment, task, task.evaluate(task.model, torch.device("cpu"))))
    return experiment


@pytest.fixture(scope="session")
def cifar10_root(tmp_path_factory) -> Path:
    """Return a folder in CIFAR-10's format, with two images in each file."""
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
    """Start a local file server; failed downloads from it are retried at once."""
    monkeypatch.setattr("weights.download.WAIT_SECONDS", 0.0)
    monkeypatch.setattr("weights.download.TIMEOUT_SECONDS", 5.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FileServer()
    yield server
    server.stop()


@pytest.fixture
def compiler_cache(tmp_path, monkeypatch):
    """Give the test its own torch.compile cache, because files half-written by a killed process crash later tests."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


@pytest.fixture
def run_in_process(monkeypatch, capsys):
    """Return a function that runs a command's module like `python -m`; it returns exit code, stdout and error lines."""
    from engine.start import start

    monkeypatch.setattr("engine.start.fit_threads", lambda: None)  # fit_threads would change the environment

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
    """Undo what a command changes in this process: do not exit with os._exit, restore signal handlers and logging."""
    monkeypatch.setattr("engine.command._exit_now", sys.exit)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logger = logging.getLogger("workbench")
    logger.propagate = True
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal():
    """Restore signals that are ignored because the tests run in the background or with nohup."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
