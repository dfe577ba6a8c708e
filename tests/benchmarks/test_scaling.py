"""benchmarks/scaling.py: gradients are exchanged, and a run that does not exchange them is found out."""

import pytest
import torch

from benchmarks import scaling
from detection.shapes import generate


@pytest.mark.slow
def test_one_process_is_timed(tmp_path):
    generate(tmp_path, num_train=4, num_val=1, image_size=64)
    figures = scaling.measure(tmp_path, torch.device("cpu"), "ResNet18SlimBackbone_B", 4, "fp32")
    assert min(figures) > 0


def test_different_weights_on_another_rank_are_found(monkeypatch):
    model = torch.nn.Linear(2, 1)
    assert scaling.same_weights(model)
    monkeypatch.setattr(scaling.distributed, "broadcast", lambda sums: [0.0] * len(sums))
    assert not scaling.same_weights(model)
