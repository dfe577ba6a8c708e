"""A model on its device: memory layout, BatchNorm's statistics, training mode, torch.compile."""

from typing import Literal

import torch
from torch import nn

from engine.logbook import logger
from engine.terminal import first_line

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
BatchNorm = Literal["local", "sync", "frozen"]


def place_model(model: nn.Module, device: torch.device, batch_norm: BatchNorm, channels_last: bool) -> nn.Module:
    """Move the model to the device; return it.

    batch_norm: statistics per process, over all processes, or never updated, with weights that do not learn."""
    if batch_norm == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.requires_grad_(False)
    return model.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)


def set_train_mode(model: nn.Module, batch_norm: BatchNorm) -> None:
    """Set training mode, except that frozen BatchNorm layers keep using their stored statistics."""
    model.train()
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile works here; log why not."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
        return True
    except Exception as error:  # of any of the compilers behind it
        logger.warning("train.compile: not possible here, so it is left out (%s)", first_line(error))
        return False
