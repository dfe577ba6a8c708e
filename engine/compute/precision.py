"""Precision of matrix products and convolutions, and which precisions the hardware supports.

`auto` is resolved once, at the start of a run: to bf16 if the hardware supports it, else fp16 on a GPU, else fp32.
A CPU without bf16 instructions emulates them, which makes a training step about ten times slower than in fp32.
"""

import platform
from typing import Literal

import torch

from engine.logbook import logger

Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return `precision`; for "auto", return the first of bf16, fp16 (GPUs only) and fp32 that `device` supports."""
    if precision != "auto":
        return precision
    return next(name for name in ("bf16", "fp16", "fp32") if is_in_hardware(name, device))


def inference_precision(trained: Precision, device: torch.device) -> Precision:
    """Return the precision to run a trained model in: `trained` if `device` supports it, else fp32."""
    precision = resolve_precision(trained, device)
    if is_in_hardware(precision, device):
        return precision
    logger.info("trained in %s, which %s does not support: using fp32", precision, describe_device(device))
    return "fp32"


def is_in_hardware(precision: Precision, device: torch.device) -> bool:
    """Return whether `device` supports `precision` without emulation."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16" and device.type == "cpu" and _cpu_has_bf16()


def describe_device(device: torch.device) -> str:
    """Return the name of the GPU, or for example 'this CPU (AVX2)', for messages."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"this CPU ({torch.backends.cpu.get_cpu_capability()})"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of a precision. Operations that are unsafe in low precision run in float32."""
    precision = resolve_precision(precision, device)
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def _cpu_has_bf16() -> bool:
    """Return whether the CPU has bf16 instructions and torch's library oneDNN uses them.

    oneDNN's own check is not enough, because it also accepts AVX-512 without bf16 instructions and emulates them."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # also false if ONEDNN_MAX_CPU_ISA excludes AVX-512
        return False
    return platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()
