"""A tiny denoiser, and experiments with it on the tiny MNIST and CIFAR-10 of tests/conftest.py."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion.model import SwinUNet
from diffusion.training import main, parse_arguments

CONFIG = """
data: {{root: {root}, format: {format}, workers: 0}}
model: {{name: swin_slim, input_size: 16, patch_size: 4, window_size: 2}}
diffusion: {{timesteps: 20}}
optim: {{optimizer: adamw, learning_rate: 1e-3, reference_batch_size: 8, warmup_epochs: 1, schedule: cosine}}
train: {{epochs: 2, batch_size: 8, precision: fp32, ema_decay: 0.9, keep_checkpoints: 9}}
eval: {{steps: 4, samples_per_class: 2}}
"""


@pytest.fixture(scope="session")
def config_path(mnist_root, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "digits.yaml"
    path.write_text(CONFIG.format(root=mnist_root, format="mnist"))
    return path


@pytest.fixture(scope="session")
def run_training() -> Callable[..., None]:
    """Return a function that runs `python -m diffusion.training WORDS` in this process, on the CPU."""

    def run(*words: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["diffusion.training", *map(str, words)])
            main(parse_arguments(sys.argv[1:]), torch.device("cpu"))

    return run


@pytest.fixture(scope="session")
def experiment(config_path, run_training, tmp_path_factory) -> Path:
    """Return a finished run of two epochs. All tests share it, so do not modify it."""
    folder = tmp_path_factory.mktemp("experiments")
    run_training(config_path, "--experiments", folder)
    return folder / "experiment_1"


@pytest.fixture(scope="session")
def coloured_experiment(cifar10_root, run_training, tmp_path_factory) -> Path:
    """Return a finished run of one epoch on CIFAR-10's files. All tests share it, so do not modify it."""
    folder = tmp_path_factory.mktemp("coloured")
    (folder / "colours.yaml").write_text(CONFIG.format(root=cifar10_root, format="cifar10"))
    run_training(folder / "colours.yaml", "train.epochs=1", "--experiments", folder)
    return folder / "experiment_1"


@pytest.fixture
def unet() -> SwinUNet:
    """Return a small untrained model of 8 x 8 grey images in three classes, whose predictions are not zero."""
    torch.manual_seed(0)
    model = SwinUNet(8, (2, 2), (1, 2), image_channels=1, num_classes=3, window_size=2, patch_size=2)
    nn.init.normal_(model.output.weight, std=0.1)
    return model.eval()
