"""The arithmetic of matrix products and convolutions."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which torch picks `precision` where that is safe, and float32 elsewhere."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
