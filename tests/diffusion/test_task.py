import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusion.data import CHANNELS, read_split, to_unit
from diffusion.task import DiffusionConfig, DiffusionTask, build_unet
from engine.checkpoint import save_checkpoint
from engine.config import load_config
from engine.optim import OptimConfig, build_optimizer
from model import SWIN_VARIANTS, SwinTransformer

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


def make_task(config_path, *overrides, from_checkpoint=False) -> DiffusionTask:
    config = load_config(config_path, overrides, DiffusionConfig)
    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    return DiffusionTask(config, train, val, from_checkpoint=from_checkpoint)


@pytest.fixture
def task(config_path) -> DiffusionTask:
    """Return a task whose model is untrained but does not predict zero."""
    task = make_task(config_path)
    torch.nn.init.normal_(task.model.output.weight, std=0.1)
    return task


def make_batch(task, count=8) -> dict:
    return task.collate([task.train_set[0, index] for index in range(count)])


def test_the_loss_is_the_mean_squared_error_summed_over_the_images(task):
    batch = make_batch(task)
    torch.manual_seed(5)
    losses, count = task.losses(task.model, batch)
    torch.manual_seed(5)
    images, timesteps = to_unit(batch["images"]), torch.randint(20, (8,))
    noise = torch.randn_like(images)
    labels = torch.where(torch.rand(8) < 0.1, 10, batch["labels"])
    predicted = task.model(task.schedule.add_noise(images, noise, timesteps), timesteps, labels)
    torch.testing.assert_close(losses["denoising"], 8 * F.mse_loss(predicted, noise))
    assert count == 8


def test_only_the_weights_that_a_classifier_initializes_have_the_learning_rate_of_the_trunk(task):
    config = OptimConfig(learning_rate=1.0, reference_batch_size=8, backbone_lr_ratio=0.5)
    optimizer = build_optimizer(task.model, config, 8, task.trunk)
    names = {parameter: name for name, parameter in task.model.named_parameters()}
    rates = {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates == {name: 0.5 if name.startswith("encoder.") else 1.0 for name in names.values()}


@pytest.mark.parametrize(("label_dropout", "expected"), [(0.0, {0, 1, 2, 3, 4, 5, 6, 7}), (1.0, {10})])
def test_label_dropout_0_keeps_all_classes_and_1_drops_all(config_path, label_dropout, expected):
    task = make_task(config_path, f"diffusion.label_dropout={label_dropout}")
    labels = []
    task.model.class_embedding.register_forward_hook(
        lambda module, arguments, output: labels.extend(arguments[0].tolist())
    )
    task.losses(task.model, make_batch(task))
    assert set(labels) == expected


@pytest.mark.parametrize("objective", ["epsilon", "v"])
def test_an_untrained_model_has_the_reference_loss(config_path, objective):
    task = make_task(config_path, f"diffusion.objective={objective}")
    torch.manual_seed(0)
    with torch.no_grad():
        losses = [float(task.losses(task.model, make_batch(task, 40))[0]["denoising"]) / 40 for _ in range(20)]
    assert np.mean(losses) == pytest.approx(task.reference_losses["denoising"], rel=0.1)


# ---- evaluation ----------------------------------------------------------------------------------------------


def test_an_evaluation_has_a_loss_for_every_validation_image_and_samples_of_every_class(task, tmp_path):
    task.model.train()
    scores, outputs = evaluation = task.evaluate(task.model, CPU)
    assert outputs.image_ids.tolist() == list(range(20))
    assert scores == {"val_loss": outputs.losses.mean()}
    assert outputs.samples.shape == (10, 2, 1, 16, 16)
    assert all(module.training for module in task.model.modules())
    with pytest.raises(KeyboardInterrupt):  # raised between batches
        task.evaluate(task.model, CPU, lambda: signal.raise_signal(signal.SIGINT))
    task.draw(tmp_path, 7, evaluation)
    assert (tmp_path / "samples/epoch_007.png").read_bytes().startswith(b"\x89PNG")


# ---- config --------------------------------------------------------------------------------------------------


def test_the_encoder_starts_from_a_classifiers_moving_average(config_path, tmp_path):
    classifier = SwinTransformer(**SWIN_VARIANTS["swin_slim"] | {"window_size": 2}, num_classes=6).state_dict()
    average = {name: torch.full_like(value, 0.5) for name, value in classifier.items()}
    save_checkpoint(tmp_path / "six.pt", {"model": classifier, "ema": {"count": 1, "weights": average}})
    task = make_task(config_path, f"model.weights={tmp_path / 'six.pt'}")
    kernel = task.model.encoder.patch_embed.proj.weight
    assert (kernel[:, :1] == 1.5).all()  # sum of 0.5 for each colour
    assert not kernel[:, 1:].any()
    assert (task.initial_weights.part, task.initial_weights.file) == ("encoder", str(tmp_path / "six.pt"))


CONFIGS = sorted((ROOT / "configs").glob("diffusion_*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_model(path):
    config = load_config(path, [], DiffusionConfig)
    channels, side = CHANNELS[config.data.format], config.model.input_size
    with torch.device("meta"):
        model = build_unet(config.model, channels, 10)
        numbers = torch.zeros(2, dtype=torch.int64)
        images = torch.empty(2, channels, side, side)
        assert model(images, numbers, numbers).shape == images.shape
