"""From noise to images: the reversed process, by the samplers of diffusers.

Every image has random numbers of its own (`image_generator`): what it becomes does not depend on what it shares a
batch with, but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from data import Key, seed_of
from diffusion.data import to_bytes
from diffusion.schedule import SAMPLERS, NoiseConfig, build_scheduler
from engine.compute.inference import evaluation_mode
from engine.compute.precision import Precision, autocast
from engine.config import Config
from engine.logbook import progress_bar

# DDIM's noise has to be what remains of the image after it is cut to -1 to 1. By diffusers' default, what guidance
# overdoes is carried from step to step, and many steps mix up the classes.
STEP_OPTIONS = {"ddim": {"use_clipped_model_output": True}}


class SamplingConfig(Config):
    """How images are made."""

    sampler: Literal[*SAMPLERS] = Field("ddim", description="how steps are taken, see diffusion/schedule.py")
    steps: int = Field(50, ge=1, description="of the sampler, at most diffusion.timesteps")
    guidance: float = Field(
        1.0, ge=0, description="scale of the step from no class to the class (arXiv 2207.12598); 1: none is taken"
    )


def check_sampling(noise: NoiseConfig, sampling: SamplingConfig) -> None:
    """Raises ValueError if images cannot be made so: for their number of steps, or guidance that was not learned."""
    steps, sampler, timesteps = sampling.steps, sampling.sampler, noise.timesteps
    if steps > timesteps:
        raise ValueError(f"steps {steps}: expected at most the {timesteps} of diffusion.timesteps")
    if sampler != "dpm++" and timesteps % steps:  # they go timesteps // steps at a time
        divisors = [divisor for divisor in range(1, timesteps + 1) if timesteps % divisor == 0]
        nearest = min(divisors, key=lambda divisor: abs(divisor - steps))
        raise ValueError(
            f"steps {steps}: {sampler} takes a number that divides diffusion.timesteps, {timesteps}, such as {nearest}"
        )
    if sampling.guidance != 1 and noise.label_dropout == 0:
        raise ValueError(
            f"guidance {sampling.guidance:g}: expected 1, because with diffusion.label_dropout 0 no model without a "
            "class was trained"
        )
    scheduler = build_scheduler(noise, sampler)
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps.unique()) < steps:  # dpm++ would divide by zero
        raise ValueError(f"steps {steps}: {sampler} has fewer different timesteps, of {timesteps}; take fewer")


def image_generator(seed: int, index: int) -> torch.Generator:
    """Random numbers of one image, on the CPU: the same whatever it shares a batch or a process with."""
    return torch.Generator().manual_seed(seed_of(seed, index))


def guided(model: nn.Module, images: Tensor, timesteps: Tensor, labels: Tensor, guidance: float) -> Tensor:
    """The model's prediction, moved away from what it predicts of no class (arXiv 2207.12598, eq. 6).

    guidance: 1 for the prediction as it is, more for clearer classes and less variety. Returns (B, C, H, W) float32."""
    if guidance == 1:
        return model(images, timesteps, labels).float()
    nothing = torch.full_like(labels, model.no_class)
    both = model(torch.cat([images, images]), torch.cat([timesteps, timesteps]), torch.cat([labels, nothing])).float()
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
    """Make an image for each label, step by step.

    model: a SwinUNet. labels: (B,) int64 on the model's device, model.no_class for any. generators: B of the CPU.
    Yields (B, C, input_size, input_size) float32, about -1 to 1, after every step; the last are the images."""
    scheduler = build_scheduler(noise, sampling.sampler)
    scheduler.set_timesteps(sampling.steps)
    options = STEP_OPTIONS.get(sampling.sampler, {})
    shape = (model.image_channels, input_size, input_size)
    images = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(labels.device)
    for timestep in scheduler.timesteps:
        with autocast(labels.device, precision):
            timesteps = torch.full_like(labels, int(timestep))
            prediction = guided(model, images, timesteps, labels, sampling.guidance)
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
    stop_if_asked: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make the images of all batches, with a progress bar.

    labels: (N,) int64, on the model's device. batches: as data.eval_batches gives. seed: image i is a function of seed
    and i. frames: after how many of the steps to look, spread evenly, the last always, or all if there are fewer.
    Yields for each batch the indices, (B,) int64, and the images, (frames, B, C, S, S) uint8, on the CPU.
    Raises ValueError, before the first, if images cannot be made so. stop_if_asked: called between steps."""
    check_sampling(noise, sampling)
    shown = set(np.linspace(sampling.steps - 1, 0, frames).round().astype(int))
    with (
        evaluation_mode(model),
        progress_bar(total=len(batches) * sampling.steps, desc="sampling", unit="step", leave=False) as bar,
    ):
        for batch in batches:
            indices = torch.tensor([index for _, index in batch])
            generators = [image_generator(seed, int(index)) for index in indices]
            seen = []
            stop_if_asked()
            steps = denoise(model, noise, sampling, labels[indices], generators, input_size, precision)
            for step, images in enumerate(steps):
                if step in shown:
                    seen.append(to_bytes(images).cpu())
                bar.update()
                stop_if_asked()
            yield indices, torch.stack(seen)
