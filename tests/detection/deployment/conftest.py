"""The images and a program of the finished detector."""

from pathlib import Path

import pytest

from detection import load
from detection.deployment import session
from detection.deployment.programs import Runner, build


@pytest.fixture
def runner(finished_detector) -> Runner:
    return build(load(finished_detector, "cpu"), "eager", "fp32")


@pytest.fixture
def files(finished_detector) -> list[Path]:
    return session.shuffled_files(session.common_split([finished_detector], []), 0)
