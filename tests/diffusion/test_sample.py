import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.generator import load_generator
from diffusion.sample import main, parse_arguments
from engine.checkpoint import list_checkpoints, load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def sample(monkeypatch):
    """Return a function that runs `python -m diffusion.sample WORDS` in this process."""

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["diffusion.sample", *map(str, words)])
        main(parse_arguments(sys.argv[1:]), CPU)

    return run


def test_samples_are_written_as_a_grid_and_an_animation(experiment, sample, tmp_path):
    path = tmp_path / "three.png"
    sample(experiment, "--classes", "0,7,2", "--per-class", 4, "--steps", 5, "--output", path)
    grid = Image.open(path)
    assert grid.size == (4 * 64 + 3 * 2, 3 * 64 + 2 * 2)  # images of 16 pixels, enlarged four times
    with Image.open(path.with_suffix(".gif")) as animation:
        assert animation.is_animated
        animation.seek(animation.n_frames - 1)
        assert np.abs(np.asarray(animation.convert("L"), int) - np.asarray(grid, int)).max() <= 1


def test_the_same_command_writes_the_same_bytes(experiment, sample, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        sample(experiment, "--per-class", 1, "--steps", 4, "--seed", seed, "--output", tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_by_default_the_images_are_written_to_the_experiment(experiment, sample, capsys):
    sample(experiment, "--classes", 1, "--per-class", 1, "--steps", 2, "--sampler", "dpm++", "--guidance", 1)
    path = experiment / "samples/step_000000010_classes_1_1_each_dpm++_2_guidance_1_seed_0.png"
    assert path.is_file()
    assert f"step_000000010.pt; written to {path}" in capsys.readouterr().out
    path.unlink()
    path.with_suffix(".gif").unlink()


def test_the_error_about_an_unknown_class_lists_the_classes(experiment, sample):
    with pytest.raises(ValueError, match=r"class 'ten': .* 0, 1, 2"):
        sample(experiment, "--classes", "ten")


def test_classes_are_found_by_name_or_number_in_the_requested_order(experiment):
    generator = load_generator(experiment)._replace(class_ids=["cat", "dog", "ship"])
    assert generator.labels_of(["ship", "cat", "1"]) == [2, 0, 1]


def test_the_loaded_weights_are_the_moving_average(experiment):
    average = load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1])["ema"]["weights"]
    weights = load_generator(experiment).model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in average.items())
