"""Fixtures for the tests of the engine."""

import textwrap

import pytest


@pytest.fixture
def write(tmp_path):
    """Writes a text, indented as the test is, to a YAML file and gives its path."""

    def write(text):
        path = tmp_path / "x.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write
