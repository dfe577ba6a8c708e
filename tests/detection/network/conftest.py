"""Fixtures for the tests of the network."""

import pytest
import torch


@pytest.fixture(params=["CPU", "accelerator"])
def code_path(request, monkeypatch):
    """Run both code paths: rows selected (CPU), and all rows with unused ones masked (GPU)."""
    if request.param == "accelerator":
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    return request.param
