"""Generate images from noise, with the schedulers of diffusers.

Every image has its own random generator (`image_generator`), so an image depends on its batch only through rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from data import Key, derive_seed
from diffusion.data import to_bytes
from diffusion.schedule import SAMPLERS, NoiseConfig, build_scheduler
from engine.compute.inference import evaluation_mode
from engine.compute.precision import Precision, autocast
from engine.config import Config
from engine.logbook import progress_bar

# Recompute DDIM's noise from the clipped image. By default, diffusers keeps the noise from before clipping. Then the
# error of strong guidance accumulates over the steps, and with many steps the images show wrong classes.
STEP_OPTIONS = {"ddim": {"use_clipped_model_output": True}}


class SamplingConfig(Config):
    """How to sample images."""

    sampler: Literal[*SAMPLERS] = Field("ddim", description="sampling algorithm, see diffusion/schedule.py")
    steps: int = Field(50, ge=1, description="number of sampling steps, at most diffusion.timesteps")
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance scale (arXiv 2207.12598); 1: no guidance")


def check_sampling(noise: NoiseConfig, sampling: SamplingConfig) -> None:
    """Raise ValueError if the sampler does not support this number of steps, or the model does not support guidance."""
    steps, sampler, timesteps = sampling.steps, sampling.sampler, noise.timesteps
    if steps > timesteps:
        raise ValueError(f"steps {steps}: expected at most diffusion.timesteps ({timesteps})")
    if sampler != "dpm++" and timesteps % steps:  # these samplers use a stride of timesteps // steps
        divisors = [divisor for divisor in range(1, timesteps + 1) if timesteps % divisor == 0]
        nearest = min(divisors, key=lambda divisor: abs(divisor - steps))
        raise ValueError(
            f"steps {steps}: {sampler} expects a divisor of diffusion.timesteps ({timesteps}), such as {nearest}"
        )
    if sampling.guidance != 1 and noise.label_dropout == 0:
        raise ValueError(
            f"guidance {sampling.guidance:g}: expected 1, because with diffusion.label_dropout 0 the model is "
            "never trained without a class"
        )
    scheduler = build_scheduler(noise, sampler)
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps.unique()) < steps:  # dpm++ divides by zero if a timestep occurs twice
        raise ValueError(f"steps {steps}: {sampler} would repeat some of the {timesteps} timesteps; use fewer steps")


def image_generator(seed: int, index: int) -> torch.Generator:
    """Return the random generator of an image, on the CPU. It does not depend on the image's batch or process."""
    return torch.Generator().manual_seed(derive_seed(seed, index))


def predict_guided(model: nn.Module, images: Tensor, timesteps: Tensor, labels: Tensor, guidance: float) -> Tensor:
    """Return the model's prediction with classifier-free guidance, (B, C, H, W) float32 (arXiv 2207.12598, eq. 6).

    guidance: 1 gives the conditional prediction; higher values give clearer classes and less variety."""
    if guidance == 1:
        return model(images, timesteps, labels).float()
    no_class = torch.full_like(labels, model.no_class)
    both = model(torch.cat([images, images]), torch.cat([timesteps, timesteps]), torch.cat([labels, no_class])).float()
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


@torch.inference_mode()
def denoise(
    model: nn.Module,
    noise: NoiseConfig,
    sampling: SamplingConfig,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    input_size: int,
    precision: Precision = "fp32",
) -> Iterator[Tensor]:
    """Generate an image for each label, and yield the images after every denoising step.

    model: a SwinUNet. labels: (B,) int64 on the model's device, model.no_class for no class. generators: B on the CPU.
    Yields (B, C, input_size, input_size) float32, about -1 to 1. The images of the last step are the result."""
    scheduler = build_scheduler(noise, sampling.sampler)
    scheduler.set_timesteps(sampling.steps)
    options = STEP_OPTIONS.get(sampling.sampler, {})
    shape = (model.image_channels, input_size, input_size)
    images = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(labels.device)
    for timestep in scheduler.timesteps:
        with autocast(labels.device, precision):
            timesteps = torch.full_like(labels, int(timestep))
            prediction = predict_guided(model, images, timesteps, labels, sampling.guidance)
        images = scheduler.step(prediction, timestep, images, generator=list(generators), **options).prev_sample
        yield images


def generate(
    model: nn.Module,
    noise: NoiseConfig,
    sampling: SamplingConfig,
    labels: Tensor,
    batches: Sequence[Sequence[Key]],
    input_size: int,
    seed: int,
    precision: Precision = "fp32",
    frames: int = 1,
    stop_if_requested: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Generate images batch by batch, with a progress bar.

    labels: (N,) int64, on the model's device. batches: from data.eval_batches. seed: image i depends only on seed and
    i. frames: number of steps whose images are returned, evenly spaced up to the last step; at most all steps.
    Yields for each batch the indices, (B,) int64, and the images, (frames, B, C, S, S) uint8, on the CPU.
    Raises ValueError before the first batch if check_sampling does. stop_if_requested: called between steps."""
    check_sampling(noise, sampling)
    returned_steps = set(np.linspace(sampling.steps - 1, 0, frames).round().astype(int))
    with (
        evaluation_mode(model),
        progress_bar(total=len(batches) * sampling.steps, desc="sampling", unit="step", leave=False) as bar,
    ):
        for batch in batches:
            indices = torch.tensor([index for _, index in batch])
            generators = [image_generator(seed, int(index)) for index in indices]
            returned_images = []
            stop_if_requested()
            steps = denoise(model, noise, sampling, labels[indices], generators, input_size, precision)
            for step, images in enumerate(steps):
                if step in returned_steps:
                    returned_images.append(to_bytes(images).cpu())
                bar.update()
                stop_if_requested()
            yield indices, torch.stack(returned_images)
