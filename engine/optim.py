"""What moves the weights: parameter groups, optimizer, learning-rate schedule, moving average.

The learning rate in a config belongs to a reference batch and follows the global batch linearly (Goyal et al.,
arXiv 1706.02677, section 2.1): the config is never rewritten, the scaled value is derived here and logged.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR
from torch.optim.swa_utils import AveragedModel

from engine.config import Config

POSITION_PARAMETERS = ("relative_position_bias_table", "absolute_pos_embed")


class OptimConfig(Config):
    """Optimizer and learning-rate schedule."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="update rule")
    learning_rate: float = Field(0.0208, gt=0, description="peak, at reference_batch_size")
    reference_batch_size: int = Field(256, ge=1, description="images per step that learning_rate is meant for")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="none on biases, norms and position parameters")
    warmup_epochs: float = Field(1.0, ge=0, description="linear rise of the learning rate, in epochs")
    schedule: Literal["steps", "cosine"] = Field("steps", description="after the warm-up")
    drop_epochs: tuple[PositiveInt, ...] = Field((), description="steps: epochs after which the rate drops")
    drop_factor: float = Field(0.1, gt=0, lt=1, description="steps: what each drop multiplies by")
    min_learning_rate: float = Field(0.0, ge=0, description="cosine: where it ends, at reference_batch_size")
    clip_norm: float | None = Field(5.0, gt=0, description="largest L2 norm of the gradient; null: no clipping")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: matrices and kernels decay; biases, norms, scales and position
    parameters do not."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_free = parameter.ndim <= 1 or name.endswith(POSITION_PARAMETERS)
            (free if is_free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


STATES_PER_WEIGHT = {"sgd": 1, "adamw": 2}  # numbers that the optimizer keeps for each weight


def schedule_warnings(optim: OptimConfig, epochs: int) -> list[str]:
    """Return what of a schedule never takes effect in so many epochs."""
    found = []
    if optim.schedule == "steps" and any(epoch >= epochs for epoch in optim.drop_epochs):
        found.append(f"optim.drop_epochs {optim.drop_epochs}: the last epoch is {epochs}")
    if optim.warmup_epochs >= epochs:
        found.append(
            f"optim.warmup_epochs {optim.warmup_epochs:g}: all of the {epochs} epochs, so the learning rate rises to "
            "the end; lower it"
        )
    return found


def scaled_learning_rate(config: OptimConfig, global_batch_size: int) -> float:
    """The peak learning rate for `global_batch_size` images per step."""
    return config.learning_rate * global_batch_size / config.reference_batch_size


def build_optimizer(model: nn.Module, config: OptimConfig, global_batch_size: int) -> Optimizer:
    """SGD or AdamW over `parameter_groups`, at the scaled peak learning rate.

    Fused, that is in few operations, and so that they do nothing in a step for which their `found_inf` is 1."""
    groups = parameter_groups(model, config.weight_decay)
    rate = scaled_learning_rate(config, global_batch_size)
    if config.optimizer == "adamw":
        return AdamW(groups, lr=rate, fused=True)
    optimizer = SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    if config.momentum:  # a first step that is not taken would leave them whatever was in their memory
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_scheduler(
    optimizer: Optimizer, config: OptimConfig, global_batch_size: int, steps_per_epoch: int, epochs: int
) -> LRScheduler:
    """Linear warm-up, then drops or a cosine; call `.step()` after every optimizer step.

    Warm-up step i of W (from 0) runs at (i + 1) / W of the peak."""
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    main_steps = max(epochs * steps_per_epoch - warmup_steps, 1)
    if config.schedule == "cosine":
        scale = global_batch_size / config.reference_batch_size
        main = CosineAnnealingLR(optimizer, T_max=main_steps, eta_min=config.min_learning_rate * scale)
    else:
        drops = [max(epoch * steps_per_epoch - warmup_steps, 0) for epoch in config.drop_epochs]
        main = MultiStepLR(optimizer, drops, gamma=config.drop_factor)
    if warmup_steps <= 1:
        return main
    warmup = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
    return SequentialLR(optimizer, [warmup, main], milestones=[warmup_steps])


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """Move an exponential moving average of weights and buffers on towards `model`.

    The decay rises as (1 + n) / (10 + n) after n updates until it reaches `decay`, so that a short run is not an
    average over its random start. Not by average.update_parameters, which waits for the device at every call."""
    count = int(average.n_averaged)  # on the CPU, wherever the weights are
    weight = 1 - min(decay, (1 + count) / (10 + count)) if count else 1.0
    averaged, current = ([*module.parameters(), *module.buffers()] for module in (average.module, model))
    pairs = list(zip(averaged, current, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [c for _, c in floats], weight)
    for old, new in pairs:
        if not old.is_floating_point():  # counters and index tables: averaging would truncate them
            old.copy_(new)
    average.n_averaged += 1
