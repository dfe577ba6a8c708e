"""weights/release.py: safetensors files with verified metadata."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import CheckpointError
from weights.release import PUBLISHED_WEIGHTS, read_safetensors, save_release, strip_local_paths, weights_in

WEIGHTS = {"head.weight": torch.arange(5000.0).view(50, 100), "norm.num_batches_tracked": torch.tensor(7)}
METADATA = {"step": "7", "classes": '["Kätzchen 猫"]'}


@pytest.fixture
def path(tmp_path):
    save_release(tmp_path / "a.safetensors", WEIGHTS, METADATA)
    return tmp_path / "a.safetensors"


def test_reading_a_release_gives_the_saved_weights_and_metadata(path):
    weights, metadata = read_safetensors(path)
    assert metadata == METADATA
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]
    assert torch.equal(load_file(path)["head.weight"], WEIGHTS["head.weight"])  # safetensors can read it, too


def test_weights_in_channels_last_are_saved_correctly(tmp_path):
    weight = torch.arange(48.0).view(2, 3, 2, 4)
    save_release(tmp_path / "a.safetensors", {"weight": weight.contiguous(memory_format=torch.channels_last)}, METADATA)
    assert torch.equal(read_safetensors(tmp_path / "a.safetensors")[0]["weight"], weight)


@pytest.mark.parametrize("place", [-2000, 30], ids=["in a weight", "in the metadata"])
def test_a_flipped_bit_is_detected(path, place):
    content = bytearray(path.read_bytes())
    content[place if place < 0 else content.index(b'"step"') + 8] ^= 1
    path.write_bytes(content)
    load_file(path)  # safetensors itself does not detect it
    with pytest.raises(CheckpointError, match=r"a\.safetensors: corrupt"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: b"<!DOCTYPE html>", lambda content: content[:-9]]
)
def test_the_error_about_a_truncated_or_different_file_names_it(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or not"):
        read_safetensors(path)


def test_a_missing_file_is_an_error_and_a_public_file_has_no_release_metadata(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no such"):
        read_safetensors(tmp_path / "a.safetensors")
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert read_safetensors(tmp_path / "a.safetensors")[1] is None


def test_weights_in_a_folder_are_the_published_ones_or_the_newest_checkpoint(tmp_path):
    assert weights_in(tmp_path / "a.pth") == tmp_path / "a.pth"
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        weights_in(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for step in (3, 12):
        (tmp_path / f"checkpoints/step_{step:09}.pt").touch()
    assert weights_in(tmp_path) == tmp_path / "checkpoints/step_000000012.pt"
    (tmp_path / PUBLISHED_WEIGHTS).touch()
    assert weights_in(tmp_path) == tmp_path / PUBLISHED_WEIGHTS


def test_local_paths_are_shortened_to_their_last_part():
    config = {"data": {"root": "/home/me/cells"}, "list": ["~/a/b", "../c/d", "a/b", 1, None]}
    assert strip_local_paths(config) == {"data": {"root": "cells"}, "list": ["b", "d", "a/b", 1, None]}
