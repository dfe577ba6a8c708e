"""Optimization: parameter groups, optimizer, learning-rate schedule, moving average of the weights.

The learning rate of a config is meant for a reference batch size and is scaled linearly with the global batch size
(Goyal et al., arXiv 1706.02677, section 2.1). The scaled value is logged; the config does not change.
"""

from collections import defaultdict
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)
from torch.optim.swa_utils import AveragedModel

from engine.config import Config

POSITION_PARAMETERS = ("relative_position_bias_table", "absolute_pos_embed")
TRUNK_GROUPS = slice(2, 4)  # positions of the trunk's groups in `parameter_groups`; an optimizer with ratio 1 has none


class OptimConfig(Config):
    """Optimizer and learning-rate schedule."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimization algorithm")
    learning_rate: float = Field(0.0208, gt=0, description="peak learning rate, for reference_batch_size")
    reference_batch_size: int = Field(256, ge=1, description="global batch size that learning_rate is meant for")
    backbone_lr_ratio: float = Field(
        1.0,
        gt=0,
        le=1,
        description="learning rate of the trunk (the pretrained part of the model) / learning rate of the rest",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay, except on biases, norms and position parameters")
    warmup_epochs: float = Field(1.0, ge=0, description="length of the linear learning-rate warm-up, in epochs")
    schedule: Literal["steps", "cosine"] = Field("steps", description="learning-rate schedule after the warm-up")
    drop_epochs: tuple[PositiveInt, ...] = Field((), description="steps: epochs after which the learning rate drops")
    drop_factor: float = Field(0.1, gt=0, lt=1, description="steps: factor by which the learning rate drops")
    min_learning_rate: float = Field(0.0, ge=0, description="cosine: final learning rate, for reference_batch_size")
    clip_norm: float | None = Field(5.0, gt=0, description="maximum L2 norm of the gradient; null: no clipping")


def parameter_groups(model: nn.Module, weight_decay: float, trunk: nn.Module | None = None) -> list[dict]:
    """Return groups of parameters: matrices and kernels with weight decay, then all others without.

    trunk: part of the model; its parameters are in two further groups (TRUNK_GROUPS). None: only two groups.
    Every trainable parameter is in exactly one group. Frozen parameters are in no group."""
    trunk_parameters = set() if trunk is None else set(trunk.parameters())
    members = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.ndim <= 1 or name.endswith(POSITION_PARAMETERS)
            members[parameter in trunk_parameters, is_exempt].append(parameter)
    return [
        {"params": members[in_trunk, is_exempt], "weight_decay": 0.0 if is_exempt else weight_decay}
        for in_trunk in ((False,) if trunk is None else (False, True))
        for is_exempt in (False, True)
    ]


STATES_PER_WEIGHT = {"sgd": 1, "adamw": 2}  # number of values that the optimizer stores per weight


def schedule_warnings(optim: OptimConfig, epochs: int) -> list[str]:
    """Return warnings about the parts of a schedule that take no effect within this number of epochs."""
    warnings = []
    if optim.schedule == "steps" and any(epoch >= epochs for epoch in optim.drop_epochs):
        warnings.append(f"optim.drop_epochs {optim.drop_epochs}: training ends after epoch {epochs}, before some drops")
    if optim.warmup_epochs >= epochs:
        warnings.append(
            f"optim.warmup_epochs {optim.warmup_epochs:g}: the learning rate rises until the end of training, after "
            f"{epochs} epochs; lower warmup_epochs"
        )
    return warnings


def scaled_learning_rate(config: OptimConfig, global_batch_size: int) -> float:
    """Return the peak learning rate for `global_batch_size` images per step."""
    return config.learning_rate * global_batch_size / config.reference_batch_size


def build_optimizer(
    model: nn.Module, config: OptimConfig, global_batch_size: int, trunk: nn.Module | None = None
) -> Optimizer:
    """Return SGD or AdamW for the `parameter_groups` of a model, with the scaled peak learning rate.

    trunk: part of the model whose learning rate is scaled by backbone_lr_ratio; required unless the ratio is 1. With
    ratio 1, the trunk has no groups of its own, so that checkpoints from before this field was added can be resumed.
    A fused optimizer is faster, and skips a step without waiting for the GPU if its `found_inf` is 1."""
    ratio, rate = config.backbone_lr_ratio, scaled_learning_rate(config, global_batch_size)
    assert ratio == 1 or trunk is not None
    groups = parameter_groups(model, config.weight_decay, None if ratio == 1 else trunk)
    for group in groups[TRUNK_GROUPS]:
        group["lr"] = ratio * rate
    if config.optimizer == "adamw":
        return AdamW(groups, lr=rate, fused=True)
    optimizer = SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    if config.momentum:  # PyTorch leaves these buffers uninitialised if it skips step 1
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_scheduler(
    optimizer: Optimizer, config: OptimConfig, global_batch_size: int, steps_per_epoch: int, epochs: int
) -> LRScheduler:
    """Return a scheduler: linear warm-up, then step drops or cosine decay; call `.step()` after every optimizer step.

    In warm-up step i of W (from 0), the learning rate is (i + 1) / W of the peak. In every step, the learning rate of
    the trunk is backbone_lr_ratio times that of the rest."""
    schedule = _build_schedule(optimizer, config, global_batch_size, steps_per_epoch, epochs)
    if config.backbone_lr_ratio == 1:
        return schedule
    return ChainedScheduler([schedule, TrunkSchedule(optimizer, config.backbone_lr_ratio)], optimizer)


class TrunkSchedule(LRScheduler):
    """Set the trunk's learning rate to `ratio` times that of the rest, which an earlier scheduler in a chain has set.

    The earlier scheduler alone would not keep the ratio, because CosineAnnealingLR ends at the same minimum in all
    groups, and rounding errors accumulate separately in each group."""

    def __init__(self, optimizer: Optimizer, ratio: float):
        self.ratio = ratio
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Return the learning rate of every group."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        rates[TRUNK_GROUPS] = [self.ratio * rates[0] for _ in rates[TRUNK_GROUPS]]
        return rates


def _build_schedule(
    optimizer: Optimizer, config: OptimConfig, global_batch_size: int, steps_per_epoch: int, epochs: int
) -> LRScheduler:
    """Return the schedule of warm-up and decay, for the groups of the rest."""
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
    """Update an exponential moving average of weights and buffers in place.

    The decay after n updates is (1 + n) / (10 + n), but at most `decay`, so that the random initial weights do not
    dominate in a short run. average.update_parameters is not used, because it waits for the GPU at every call."""
    count = int(average.n_averaged)  # a CPU tensor, wherever the weights are
    weight = 1 - min(decay, (1 + count) / (10 + count)) if count else 1.0
    averaged, current = ([*module.parameters(), *module.buffers()] for module in (average.module, model))
    pairs = list(zip(averaged, current, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [c for _, c in floats], weight)
    for old, new in pairs:
        if not old.is_floating_point():  # copy counters and index tables, because averaging would truncate them
            old.copy_(new)
    average.n_averaged += 1
