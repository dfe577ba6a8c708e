"""Arithmetic is counted as by hand, and counting leaves no trace."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from engine.compute.cost import forward_gflops, peak_memory_mib
from model import SwinTransformer

CPU = torch.device("cpu")


def swin():
    """Two stages: at 56 pixels 196 tokens of 8 channels, then 49 of 16, in windows of 49."""
    return SwinTransformer(embed_dim=8, depths=(2, 2), num_heads=(1, 2), num_classes=10)


def test_a_convolution_costs_two_per_multiply_add():
    layer = nn.Conv2d(3, 8, kernel_size=5, stride=2, padding=2)
    assert forward_gflops(layer, 32) * 1e9 == pytest.approx(2 * (16 * 16) * 8 * (3 * 5 * 5))


def test_a_linear_layer_costs_two_per_weight():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10), nn.ReLU())
    assert forward_gflops(model, 8) * 1e9 == pytest.approx(2 * 3 * 8 * 8 * 10)


def test_resnet50_costs_twice_its_published_multiply_adds():
    published = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["_ops"]
    assert forward_gflops(torchvision.models.resnet50(), 224) == pytest.approx(2 * published, rel=1e-3)


def test_the_attention_of_a_swin_is_counted():
    def block(tokens, channels):
        weights = (3 + 1 + 4 + 4) * channels**2  # queries, keys and values; projection; two layers of the MLP
        return tokens * weights + 2 * tokens * 49 * channels  # queries with keys, probabilities with values

    multiply_adds = 196 * (4 * 4 * 3) * 8 + 2 * block(196, 8) + 49 * 32 * 16 + 2 * block(49, 16) + 16 * 10
    assert forward_gflops(swin(), 56) * 1e9 == pytest.approx(2 * multiply_adds)


def test_scaled_dot_product_attention_is_counted_on_the_cpu():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, image):
            tokens = (image * self.scale).flatten(2)[:, None]  # (1, 1, 3, 64)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert forward_gflops(Attention(), 8) * 1e9 == pytest.approx(2 * (3 * 3 * 64) * 2)


def test_counting_restores_the_mode_of_every_module_and_moves_no_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    forward_gflops(model, 8)
    assert [module.training for module in model] == [True, True, False]
    assert model[1].num_batches_tracked == 0


def test_a_model_can_be_trained_after_counting():
    model = swin()
    forward_gflops(model, 64)
    model(torch.randn(2, 3, 64, 64)).sum().backward()


def test_the_peak_of_memory_is_that_of_the_process_and_never_falls():
    before = peak_memory_mib(CPU)
    block = np.ones(int(before + 64) * 2**20, np.uint8)
    during = peak_memory_mib(CPU)
    assert during >= before + 60
    del block
    assert peak_memory_mib(CPU) >= during
