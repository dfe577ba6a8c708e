"""The diffusion task: Swin-UNet, denoising loss and samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from data import LabelledImages, LabelledSamples, LabelledTask, batch_to, eval_batches, eval_loader, gather_in_order
from diffusion.data import CHANNELS, DataConfig, build_transform, to_unit
from diffusion.model import SwinUNet, load_encoder_weights
from diffusion.pictures import draw_grid
from diffusion.sampling import SamplingConfig, check_sampling, generate, image_generator
from diffusion.schedule import NoiseConfig, NoiseSchedule
from engine import distributed
from engine.compute.inference import evaluation_mode
from engine.compute.precision import autocast
from engine.config import Config
from engine.logbook import progress_bar
from engine.optim import OptimConfig
from model import SWIN_VARIANTS
from records.results import InitialWeights
from training import Evaluation, TrainConfig
from weights.registry import find_weights, initial_weights, read_weights

EVAL_SEED = 0  # seed of the noise in evaluations; fixed, so that the losses of runs can be compared


class ModelConfig(Config):
    """The Swin-UNet to build."""

    name: Literal[*SWIN_VARIANTS] = Field("swin_t", description="variant of the encoder, see model.SWIN_VARIANTS")
    input_size: int = Field(224, ge=1, description="side in pixels to which images are resized")
    patch_size: int = Field(4, ge=1, description="side of a patch in pixels")
    window_size: int | None = Field(None, ge=1, description="side of a window in patches; null: the variant's default")
    weights: str | None = Field(
        None,
        description="classifier that initializes the encoder: imagenet1k, a name in saved_weights/registry.yaml, a "
        "file, or an experiment; null: random weights",
    )
    average_weights: bool = Field(True, description="load an experiment's moving average of weights, if it has one")


class DiffusionTrainConfig(TrainConfig):
    """The common training config, but with a moving average by default: raw weights give much worse samples."""

    ema_decay: float | None = Field(0.999, gt=0, lt=1, description="sample and score a moving average of the weights")


class EvalConfig(SamplingConfig):
    """How to sample images in evaluations, which also compute the loss on validation images."""

    samples_per_class: int = Field(8, ge=1, description="samples per class: columns of the sample grid")


class DiffusionConfig(Config):
    """Config of a diffusion run: one row of a results table."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    diffusion: NoiseConfig = Field(default_factory=NoiseConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: DiffusionTrainConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)


def build_unet(config: ModelConfig, image_channels: int, num_classes: int) -> SwinUNet:
    """Return the model that a config describes, with random weights."""
    sizes = SWIN_VARIANTS[config.name] | ({"window_size": config.window_size} if config.window_size else {})
    return SwinUNet(
        **sizes,
        image_channels=image_channels,
        num_classes=num_classes,
        patch_size=config.patch_size,
    )


def load_initial_weights(model: SwinUNet, config: ModelConfig) -> InitialWeights:
    """Initialize the encoder with the weights given in the config. Return the record of the weights.

    Raises ValueError, naming the config field, if the weights are missing or do not fit the encoder."""
    try:
        found = find_weights(config.weights, config.name)
        weights = read_weights(found.path, config.average_weights)
        resized = load_encoder_weights(model, weights)
    except ValueError as error:
        raise ValueError(f"model.weights '{config.weights}': {error}") from error
    note = f"{len(resized)} position tables resized, such as {resized[0]}" if resized else ""
    return initial_weights("encoder", config.weights, found, note)


class EvaluationOutputs(NamedTuple):
    """The losses on N validation images, and samples."""

    image_ids: np.ndarray  # (N,) int64, ascending
    losses: np.ndarray  # (N,) float64
    samples: np.ndarray  # (classes, samples_per_class, C, S, S) uint8


class DiffusionTask(LabelledTask):
    """Train a Swin-UNet to denoise images, score it by its loss on validation images, and sample; see training.Task."""

    metrics = ("val_loss",)
    lower_is_better = True

    def __init__(
        self, config: DiffusionConfig, train: LabelledImages, val: LabelledImages, *, from_checkpoint: bool = False
    ) -> None:
        """Raise ValueError if model.weights cannot be loaded, or the `eval` section is invalid (see check_sampling)."""
        try:
            check_sampling(config.diffusion, config.eval)
        except ValueError as error:
            raise ValueError(f"eval.{error}") from error
        super().__init__(config, train, val)
        self.schedule = NoiseSchedule(config.diffusion)
        self.reference_losses = {"denoising": self.schedule.zero_loss(mean_square(train.images))}
        torch.manual_seed(config.train.seed)  # initial weights
        self.model = build_unet(config.model, CHANNELS[config.data.format], len(train.class_ids))
        self.trunk = self.model.encoder
        self.initial_weights: InitialWeights | None = None
        if config.model.weights is not None and not from_checkpoint:
            self.initial_weights = load_initial_weights(self.model, config.model)
        transform = build_transform(config.data, config.model.input_size, train=True)
        self.train_set = LabelledSamples(train, transform, config.train.seed)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the loss summed over the images of a batch, and the number of images. `errors` gives each loss."""
        config = self.config.diffusion
        images, labels = to_unit(batch["images"]), batch["labels"]
        timesteps = torch.randint(config.timesteps, labels.shape, device=images.device)
        noise = torch.randn_like(images)
        is_dropped = torch.rand(labels.shape, device=images.device) < config.label_dropout
        labels = torch.where(is_dropped, self.model.no_class, labels)
        errors = self.errors(model, images, noise, timesteps, labels)
        return {"denoising": errors.sum()}, torch.full((), len(images), device=images.device)

    def errors(self, model: nn.Module, images: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error of the prediction for each noisy image, (B,) float32.

        images, noise: (B, C, S, S) float32, images from -1 to 1. timesteps, labels: (B,) int64."""
        prediction = model(self.schedule.add_noise(images, noise, timesteps), timesteps, labels).float()
        target = self.schedule.target(images, noise, timesteps)
        return F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))

    def evaluate(
        self, model: nn.Module, device: torch.device, stop_if_requested: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Return the mean loss over all validation images, and on rank 0 the EvaluationOutputs.

        Each image has the same noise and timestep in every evaluation. The loss does not depend on the world size."""
        losses = self.val_losses(model, device, stop_if_requested)
        samples = self.sample(model, device, stop_if_requested)
        outputs = losses and EvaluationOutputs(*losses, samples)
        scores = outputs and {"val_loss": float(outputs.losses.mean())}
        return Evaluation(distributed.broadcast(scores), outputs)

    def val_losses(
        self, model: nn.Module, device: torch.device, stop_if_requested: Callable[[], None]
    ) -> list[np.ndarray] | None:
        """Return image ids, (N,) int64, and losses, (N,) float64, of validation images on rank 0, else None."""
        config = self.config
        if self.val_loader is None:
            transform = build_transform(config.data, config.model.input_size, train=False)
            self.val_loader = eval_loader(self.val, transform, config.train.batch_size, self.workers, device)
        batches = []
        with evaluation_mode(model), torch.inference_mode():
            for batch in progress_bar(self.val_loader, desc="scoring", unit="batch", leave=False):
                stop_if_requested()
                timesteps, noise = fixed_noise(
                    batch["image_ids"].tolist(), config.diffusion.timesteps, batch["images"].shape[1:]
                )
                batch = batch_to(batch, device)
                with autocast(device, config.train.precision):
                    errors = self.errors(
                        model, to_unit(batch["images"]), noise.to(device), timesteps.to(device), batch["labels"]
                    )
                batches.append((batch["image_ids"].cpu().numpy(), errors.cpu().double().numpy()))
        return gather_in_order(batches)

    def sample(
        self, model: nn.Module, device: torch.device, stop_if_requested: Callable[[], None]
    ) -> np.ndarray | None:
        """Return samples from fixed noise, (classes, samples_per_class, C, S, S) uint8, on rank 0, else None."""
        config = self.config
        labels = torch.arange(len(self.train.class_ids), device=device).repeat_interleave(config.eval.samples_per_class)
        batches = eval_batches(len(labels), config.train.batch_size, distributed.rank(), distributed.world_size())
        parts = []
        for indices, images in generate(
            model, config.diffusion, config.eval, labels, batches, config.model.input_size, EVAL_SEED,
            config.train.precision, stop_if_requested=stop_if_requested,
        ):  # fmt: skip
            parts.append((indices.numpy(), images[-1].numpy()))
        gathered = gather_in_order(parts)
        return gathered and gathered[1].reshape(len(self.train.class_ids), -1, *gathered[1].shape[1:])

    def draw(self, experiment: Path, epoch: int, evaluation: Evaluation) -> None:
        """Draw the samples as samples/epoch_010.png, one row per class."""
        (experiment / "samples").mkdir(exist_ok=True)
        draw_grid(experiment / f"samples/epoch_{epoch:03d}.png", evaluation.predictions.samples)


def mean_square(images: np.ndarray) -> float:
    """Return the mean square of the pixels of (N, ...) uint8 images, scaled to -1 to 1."""
    # In chunks, because bincount needs eight bytes per pixel.
    counts = sum(np.bincount(part.ravel(), minlength=256) for part in np.array_split(images, -(-len(images) // 1000)))
    values = to_unit(torch.arange(256, dtype=torch.uint8)).double().numpy()
    return float(counts @ values**2 / images.size)


def fixed_noise(image_ids: list[int], timesteps: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return timesteps and noise for validation images. Both depend only on the image ids.

    shape: shape of an image. Returns (B,) int64, from 0 to timesteps - 1, and (B, *shape) float32."""
    generators = [image_generator(EVAL_SEED, image_id) for image_id in image_ids]
    times = torch.cat([torch.randint(timesteps, (1,), generator=generator) for generator in generators])
    return times, torch.stack([torch.randn(shape, generator=generator) for generator in generators])
