"""Put a model on its device: memory layout, BatchNorm statistics, training mode, torch.compile."""

import sys
from typing import Literal

import torch
from torch import nn

from engine.logbook import logger
from engine.terminal import first_line

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
BatchNorm = Literal["local", "sync", "frozen"]


def place_model(model: nn.Module, device: torch.device, batch_norm: BatchNorm, channels_last: bool) -> nn.Module:
    """Move the model to the device; return it.

    batch_norm: statistics per process ("local"), over all processes ("sync"), or fixed like the weights ("frozen")."""
    if batch_norm == "sync":
        model = convert_to_sync(model)
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.requires_grad_(False)
    return model.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)


def convert_to_sync(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm layer by SyncBatchNorm; return the model.

    In models of timm, a BatchNorm layer may include the activation, which only timm's function keeps."""
    if "timm" in sys.modules:
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def set_train_mode(model: nn.Module, batch_norm: BatchNorm) -> None:
    """Put the model in training mode, except for frozen BatchNorm layers, which use their stored statistics."""
    model.train()
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile works on this machine; if not, log the reason."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
        return True
    except Exception as error:  # compilers raise many types of exception
        logger.warning("train.compile ignored: torch.compile does not work on this machine (%s)", first_line(error))
        return False
