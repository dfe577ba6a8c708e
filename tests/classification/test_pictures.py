import numpy as np
import pytest
from PIL import Image

from classification.pictures import Example, draw_confusion, draw_examples


@pytest.mark.parametrize("guesses", [np.arange(40), (np.arange(40) + 1) % 40], ids=["all right", "all wrong"])
def test_many_classes_make_a_list_of_confusions(tmp_path, guesses):
    draw_confusion(tmp_path / "many.png", np.arange(40), guesses, [f"class {number}" for number in range(40)])
    width, height = Image.open(tmp_path / "many.png").size
    assert width == 880
    assert height > 100


def margin(path):
    """The outermost two pixels on each side of a picture: white, unless something is cut off."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel(), pixels[:, -2:].ravel()])


@pytest.mark.parametrize("count", [2, 12, 100])
def test_of_a_confusion_chart_with_long_names_nothing_is_cut_off(tmp_path, count):
    labels = np.random.default_rng(0).integers(0, count, (2, 500))
    draw_confusion(tmp_path / "long.png", *labels, [f"{number} {30 * 'm'}" for number in range(count)])
    assert margin(tmp_path / "long.png").min() > 200


@pytest.mark.parametrize("guesses", [1, 3, 5])
def test_of_examples_with_long_names_nothing_is_cut_off(tmp_path, guesses):
    names = [f"Staphylococcus aureus, kind {number}" for number in range(guesses)]
    draw_examples(tmp_path / "long.png", [Example(Image.new("RGB", (64, 64)), names[0], names, [0.2] * guesses)] * 8)
    assert margin(tmp_path / "long.png").min() > 200


def test_an_example_is_seen_with_its_guesses(tmp_path):
    example = Example(Image.new("RGB", (64, 64), (250, 0, 250)), "tench", ["goldfish", "tench"], [0.75, 0.25])
    draw_examples(tmp_path / "one.png", [example])
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("RGB"), np.int64)
    assert (np.abs(pixels - (250, 0, 250)).sum(2) < 20).mean() > 0.1
    below = pixels[pixels.shape[0] * 3 // 4 :]
    red, green = below[..., 0] - below[..., 1], below[..., 1] - below[..., 0]
    assert (red > 80).any()  # the wrong guess
    assert (green > 80).any()  # the right one
