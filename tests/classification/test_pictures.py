from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classification.pictures import draw_confusion, draw_examples
from classification.task import Predictions
from data import LabelledImages

LONG = [f"Staphylococcus aureus, kind {number}" for number in range(100)]


def margin(path):
    """Return the outermost two pixels on each side of a picture; they are white unless something is cut off."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel(), pixels[:, -2:].ravel()])


@pytest.mark.parametrize("shift", [0, 1], ids=["all correct", "all wrong"])
@pytest.mark.parametrize("count", [2, 100])
def test_nothing_is_cut_off_in_a_confusion_matrix(tmp_path, count, shift):
    labels = np.arange(500) % count
    draw_confusion(tmp_path / "long.png", labels, (labels + shift) % count, LONG[:count])
    assert margin(tmp_path / "long.png").min() > 200


def test_examples_show_images_and_predictions_and_nothing_is_cut_off(tmp_path):
    pixels = np.full((2, 64, 64, 3), (250, 0, 250), np.uint8)
    images = LabelledImages(Path("pink"), pixels, np.array([0, 1]), [], LONG[:3], "", {})
    predictions = Predictions(np.arange(2), np.array([[1, 0, 2], [1, 0, 2]]), np.array([[0.75, 0.2, 0.05]] * 2))
    draw_examples(tmp_path / "two.png", images, predictions)
    assert margin(tmp_path / "two.png").min() > 200
    pixels = np.asarray(Image.open(tmp_path / "two.png").convert("RGB"), np.int64)
    assert (np.abs(pixels - (250, 0, 250)).sum(2) < 20).mean() > 0.1
    below = pixels[pixels.shape[0] * 3 // 4 :]
    red, green = below[..., 0] - below[..., 1], below[..., 1] - below[..., 0]
    assert (red > 80).any()  # the wrong prediction
    assert (green > 80).any()  # the correct prediction
