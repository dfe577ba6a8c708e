import pytest
import torch

from benchmarks import scaling
from detection.shapes import generate


@pytest.mark.slow
def test_one_process_is_timed(tmp_path):
    generate(tmp_path, num_train=4, num_val=1, image_size=64)
    seconds = scaling.time_steps(tmp_path, torch.device("cpu"), "ResNet18SlimBackbone_B", 4, "fp32")
    assert min(seconds) > 0
