"""weights/release.py: weights for others to use, whole, verified, and without code."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import CheckpointError
from weights.release import PUBLISHED_WEIGHTS, load_release, save_release, weights_in

WEIGHTS = {"head.weight": torch.arange(5000.0).view(50, 100), "norm.num_batches_tracked": torch.tensor(7)}
FACTS = {"step": "7", "classes": '["Kätzchen 猫"]'}


@pytest.fixture
def path(tmp_path):
    save_release(tmp_path / "a.safetensors", WEIGHTS, FACTS)
    return tmp_path / "a.safetensors"


def test_a_release_comes_back_as_it_was(path):
    weights, facts = load_release(path)
    assert facts == FACTS
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_other_programs_read_it(path):
    assert torch.equal(load_file(path)["head.weight"], WEIGHTS["head.weight"])


def test_weights_in_another_memory_layout_are_released_too(tmp_path):
    weight = torch.arange(48.0).view(2, 3, 2, 4)
    save_release(tmp_path / "a.safetensors", {"weight": weight.contiguous(memory_format=torch.channels_last)}, {})
    assert torch.equal(load_release(tmp_path / "a.safetensors")[0]["weight"], weight)


@pytest.mark.parametrize("place", [-2000, 30], ids=["of a weight", "of the facts"])
def test_a_flipped_bit_is_found(path, place):
    content = bytearray(path.read_bytes())
    content[place if place < 0 else content.index(b'"step"') + 8] ^= 1
    path.write_bytes(content)
    load_file(path)  # safetensors alone sees nothing
    with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged"):
        load_release(path)


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: b"<!DOCTYPE html>", lambda content: content[:-9]]
)
def test_a_file_that_is_not_whole_or_something_else_is_named(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or not a safetensors file"):
        load_release(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no such file of weights"):
        load_release(tmp_path / "a.safetensors")


def test_weights_that_nobody_can_verify_are_refused(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no checksum"):
        load_release(tmp_path / "a.safetensors")


def test_of_an_experiment_the_newest_checkpoint_is_meant(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (3, 12):
        (tmp_path / f"checkpoints/step_{step:09}.pt").touch()
    assert weights_in(tmp_path) == tmp_path / "checkpoints/step_000000012.pt"


def test_of_a_published_folder_its_weights_are_meant(tmp_path):
    (tmp_path / PUBLISHED_WEIGHTS).touch()
    assert weights_in(tmp_path) == tmp_path / PUBLISHED_WEIGHTS


def test_what_is_no_folder_is_taken_for_a_file(tmp_path):
    assert weights_in(tmp_path / "a.pth") == tmp_path / "a.pth"


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        weights_in(tmp_path)
