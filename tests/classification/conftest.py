"""A data set in ImageNet's layout with six classes that differ in colour, and a small classifier trained on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classification.training import main, parse_arguments

# Two folder names are WordNet ids of ImageNet.
COLOURS = {
    "black": (20, 20, 20),
    "blue": (40, 60, 220),
    "green": (30, 200, 50),
    "n01440764": (230, 40, 40),
    "n02124075": (220, 210, 40),
    "white": (240, 240, 240),
}


def draw(root: Path, split: str, images_per_class: int) -> None:
    """Write PNGs of 24 x 20 pixels: the colour of their class plus noise."""
    rng = np.random.default_rng(len(split))
    for name, colour in COLOURS.items():
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(images_per_class):
            pixels = rng.normal(colour, 25, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="session")
def colours_root(tmp_path_factory) -> Path:
    """Return a root with 8 training images per class, 3 validation images of the first two classes, 2 of the rest."""
    root = tmp_path_factory.mktemp("colours")
    draw(root, "train", 8)
    draw(root, "val", 3)
    for name in list(COLOURS)[2:]:
        (root / "val" / name / "2.png").unlink()
    return root


CONFIG = """
data: {{root: {root}, workers: 0}}
model: {{name: swin_slim, input_size: 32, patch_size: 4, drop_path_rate: 0.1}}
augment: {{crop_scale: [0.6, 1.0], rand_augment: null, erase: 0.0, mixup: 0.0, cutmix: 0.0}}
optim: {{optimizer: adamw, learning_rate: 1e-3, reference_batch_size: 8, warmup_epochs: 1, schedule: cosine}}
train: {{epochs: 2, batch_size: 8, precision: fp32, ema_decay: 0.9, keep_checkpoints: 9}}
eval: {{crop_fraction: 1.0}}
"""


@pytest.fixture(scope="session")
def config_path(colours_root, tmp_path_factory) -> Path:
    """Return a config that trains a small Swin on the colours."""
    path = tmp_path_factory.mktemp("config") / "colours.yaml"
    path.write_text(CONFIG.format(root=colours_root))
    return path


@pytest.fixture(scope="session")
def experiment(config_path, tmp_path_factory) -> Path:
    """Return a finished run of two epochs. All tests share it, so do not modify it."""
    folder = tmp_path_factory.mktemp("experiments")
    main(parse_arguments([str(config_path), "--experiments", str(folder)]), torch.device("cpu"))
    return folder / "experiment_1"
