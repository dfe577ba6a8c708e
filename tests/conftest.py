"""Fixtures that several test modules share."""

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

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """The same number of threads in every test: sums depend on it, and two busy cores help no one."""
    torch.set_num_threads(2)


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
    from detection.sample import generate

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


@pytest.fixture(autouse=True)
def _commands_leave_no_trace(monkeypatch):
    """A command leaves at once, by os._exit, and has its own way to log; the process that runs the tests does not."""
    monkeypatch.setattr("engine.command._leave", sys.exit)
    yield
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
