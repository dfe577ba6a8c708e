"""Fixtures for the tests of the engine."""

import textwrap

import pytest


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a text, without its indentation, to a YAML file and returns the path."""

    def write(text):
        path = tmp_path / "x.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write
