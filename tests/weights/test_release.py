"""weights/release.py: safetensors files that are complete and verified."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import CheckpointError
from weights.release import PUBLISHED_WEIGHTS, read_safetensors, save_release, weights_in, without_local_paths

WEIGHTS = {"head.weight": torch.arange(5000.0).view(50, 100), "norm.num_batches_tracked": torch.tensor(7)}
FACTS = {"step": "7", "classes": '["Kätzchen 猫"]'}


@pytest.fixture
def path(tmp_path):
    save_release(tmp_path / "a.safetensors", WEIGHTS, FACTS)
    return tmp_path / "a.safetensors"


def test_a_release_comes_back_as_it_was(path):
    weights, facts = read_safetensors(path)
    assert facts == FACTS
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]
    assert torch.equal(load_file(path)["head.weight"], WEIGHTS["head.weight"])  # other programs read it, too


def test_weights_in_channels_last_are_released_too(tmp_path):
    weight = torch.arange(48.0).view(2, 3, 2, 4)
    save_release(tmp_path / "a.safetensors", {"weight": weight.contiguous(memory_format=torch.channels_last)}, FACTS)
    assert torch.equal(read_safetensors(tmp_path / "a.safetensors")[0]["weight"], weight)


@pytest.mark.parametrize("place", [-2000, 30], ids=["of a weight", "of the facts"])
def test_a_flipped_bit_is_found(path, place):
    content = bytearray(path.read_bytes())
    content[place if place < 0 else content.index(b'"step"') + 8] ^= 1
    path.write_bytes(content)
    load_file(path)  # safetensors alone sees nothing
    with pytest.raises(CheckpointError, match=r"a\.safetensors: corrupt"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: b"<!DOCTYPE html>", lambda content: content[:-9]]
)
def test_a_truncated_or_different_file_is_named(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or not a safetensors file"):
        read_safetensors(path)


def test_a_missing_file_is_refused_and_one_of_others_has_no_facts(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no such file of weights"):
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


def test_paths_of_this_machine_are_cut_to_their_last_part():
    config = {"data": {"root": "/home/me/cells"}, "list": ["~/a/b", "../c/d", "a/b", 1, None]}
    assert without_local_paths(config) == {"data": {"root": "cells"}, "list": ["b", "d", "a/b", 1, None]}
