"""Fixtures that several test modules share."""

import logging
import os
import signal
import sys
from pathlib import Path

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
