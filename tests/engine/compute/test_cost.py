"""engine/compute/cost.py: counts agree with counts by hand, and counting does not change the model."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.compute.cost import forward_gflops, peak_memory_mib
from model import SwinTransformer

CPU = torch.device("cpu")


def swin():
    """Return a model with two stages: at 56 pixels, 196 tokens of 8 channels, then 49 of 16; windows of 49 tokens."""
    return SwinTransformer(embed_dim=8, depths=(2, 2), num_heads=(1, 2), num_classes=10)


def test_resnet50_costs_twice_its_published_multiply_adds():
    published = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["_ops"]
    assert forward_gflops(torchvision.models.resnet50(), 224) == pytest.approx(2 * published, rel=1e-3)


def test_the_attention_of_a_swin_is_counted():
    def block(tokens, channels):
        weights = (3 + 1 + 4 + 4) * channels**2  # queries, keys and values; projection; two layers of the MLP
        return tokens * weights + 2 * tokens * 49 * channels  # queries times keys, probabilities times values

    multiply_adds = 196 * (4 * 4 * 3) * 8 + 2 * block(196, 8) + 49 * 32 * 16 + 2 * block(49, 16) + 16 * 10
    assert forward_gflops(swin(), 56) * 1e9 == pytest.approx(2 * multiply_adds)


class Attention(nn.Module):
    """Attention with 4 heads over the 16 rows of an image; keys and values have `key_heads` heads."""

    def __init__(self, spelt_out=False, key_heads=4, **options):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.spelt_out, self.key_heads, self.options = spelt_out, key_heads, options

    def forward(self, image):
        tokens = (image * self.scale)[:, :1].expand(-1, 4, -1, -1)  # (1, 4, 16, 16)
        query, key = tokens, tokens[:, : self.key_heads]
        if self.spelt_out:
            return (query @ key.mT).softmax(dim=-1) @ key
        attend = nn.functional.scaled_dot_product_attention
        return attend(query, key, key, enable_gqa=self.key_heads < 4, **self.options)


ATTENTION_COST = 2 * 4 * (16 * 16 * 16 + 16 * 16 * 16)  # 4 heads: 16 queries, 16 keys and 16 values of 16 channels


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"key_heads": 2}])
def test_attention_costs_the_same_with_any_kernel(backend, options):
    assert forward_gflops(Attention(spelt_out=True), 16) * 1e9 == pytest.approx(ATTENTION_COST)
    with sdpa_kernel(backend):
        assert forward_gflops(nn.Sequential(nn.Sequential(Attention(**options))), 16) * 1e9 == ATTENTION_COST


def test_a_transformer_encoder_is_counted_without_its_fast_path():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)

        def forward(self, image):
            return self.layer(image[:, 0])

    weights, products = 16 * (3 * 16 + 16 + 32 + 32), 2 * 16 * 16  # per token, for 16 tokens
    assert forward_gflops(Encoder(), 16) * 1e9 == pytest.approx(2 * 16 * (weights + products))
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_restores_the_mode_of_every_module_and_updates_no_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    forward_gflops(model, 8)
    assert [module.training for module in model] == [True, True, False]
    assert model[1].num_batches_tracked == 0
    model(torch.randn(2, 3, 8, 8)).sum().backward()  # the model can be trained afterwards


def test_peak_memory_of_the_process_rises_with_allocations_and_never_falls():
    before = peak_memory_mib(CPU)
    block = np.ones(int(before + 64) * 2**20, np.uint8)
    during = peak_memory_mib(CPU)
    assert during >= before + 60
    del block
    assert peak_memory_mib(CPU) >= during
