"""engine/compute/precision.py: which precision is used on which hardware."""

import platform

import pytest
import torch

from engine.compute import precision
from engine.compute.precision import autocast, inference_precision, is_in_hardware, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def hardware(monkeypatch):
    """Return a function that sets whether the CPU and the GPU appear to support bf16."""

    def set_support(cpu_bf16: bool = False, gpu_bf16: bool = False) -> None:
        monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: cpu_bf16)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")

    return set_support


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [(CPU, True, "bf16"), (CPU, False, "fp32"), (GPU, True, "bf16"), (GPU, False, "fp16")],
)
def test_auto_is_resolved_to_a_precision_that_the_hardware_supports(hardware, device, has_bf16, expected):
    hardware(cpu_bf16=has_bf16, gpu_bf16=has_bf16)
    assert resolve_precision("auto", device) == expected


@pytest.mark.parametrize(
    ("trained", "cpu_bf16", "expected"),
    [("bf16", True, "bf16"), ("bf16", False, "fp32"), ("fp16", True, "fp32"), ("fp32", True, "fp32")],
)
def test_inference_uses_the_precision_of_training_if_supported_else_fp32(hardware, trained, cpu_bf16, expected):
    hardware(cpu_bf16=cpu_bf16)
    assert inference_precision(trained, CPU) == expected


@pytest.mark.parametrize(
    ("onednn", "avx512_bf16", "machine", "expected"),
    [
        (True, True, "x86_64", True),
        (True, False, "x86_64", False),  # AVX-512 alone: oneDNN would emulate bf16
        (False, True, "x86_64", False),  # oneDNN is limited to AVX2
        (True, False, "aarch64", True),
        (False, False, "aarch64", False),
    ],
)
def test_a_cpu_supports_bf16_if_onednn_uses_its_instructions(monkeypatch, onednn, avx512_bf16, machine, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert is_in_hardware("bf16", CPU) is expected


@pytest.mark.parametrize(("cpu_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_resolves_auto(hardware, cpu_bf16, dtype):
    hardware(cpu_bf16=cpu_bf16)
    with autocast(CPU, "auto"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype
