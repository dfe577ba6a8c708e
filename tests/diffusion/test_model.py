import math

import pytest
import torch
from torch import nn

from diffusion.model import SwinUNet, load_encoder_weights, sinusoidal_embedding
from model import SwinTransformer

TINY = {"embed_dim": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 2), "window_size": 4, "patch_size": 2}


def build_tiny(image_channels: int = 1, **changes) -> SwinUNet:
    """Return a small model whose last convolution is not zero, so that its predictions are not zero either."""
    torch.manual_seed(0)
    model = SwinUNet(**TINY | changes, image_channels=image_channels, num_classes=3)
    nn.init.normal_(model.output.weight, std=0.1)
    return model.eval()


def make_inputs(batch: int = 2, channels: int = 1, size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, channels, *size, generator=generator)
    return images, torch.arange(batch) * 7, torch.arange(batch) % 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (17, 17), (30, 22), (5, 40)])
def test_predictions_have_the_shape_of_the_images(channels, size):
    images, timesteps, labels = make_inputs(2, channels, size)
    assert build_tiny(channels)(images, timesteps, labels).shape == images.shape


def test_an_untrained_model_predicts_zero():
    model = SwinUNet(**TINY, image_channels=1, num_classes=3)
    assert not model(*make_inputs()).any()


def test_gradients_reach_every_parameter():
    model = build_tiny()
    model(*make_inputs()).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


@pytest.mark.parametrize(("level", "stage"), [(0, 1), (1, 0)])  # coarse to fine, the encoder's fine to coarse
def test_gradients_flow_through_every_skip(level, stage):
    model = build_tiny()
    for number, decoder_level in enumerate(model.decoder):

        def detach(module: nn.Module, arguments: tuple, keep_skip: bool = number == level) -> tuple:
            x, skip, time = arguments
            return (x.detach(), skip, time) if keep_skip else (x, skip.detach(), time)

        decoder_level.register_forward_pre_hook(detach)
    model(*make_inputs()).square().sum().backward()
    assert all(weights.grad.any() for weights in model.encoder.layers[stage].blocks.parameters())
    deeper = model.encoder.layers[stage + 1].blocks.parameters()
    assert not any(weights.grad is not None and weights.grad.any() for weights in deeper)


def test_every_stage_depends_on_the_time():
    model = build_tiny()
    layers = [*model.encoder_times, model.middle_time, *(level.time for level in model.decoder)]
    assert len(layers) == 3 + 1 + 2
    images, timesteps, labels = make_inputs()
    expected = model(images, timesteps, labels)
    for layer in layers:
        hook = layer.register_forward_hook(lambda module, arguments, output: 0 * output)
        assert not torch.allclose(model(images, timesteps, labels), expected)
        hook.remove()


def test_a_prediction_depends_only_on_the_time_and_class_of_its_image():
    model = build_tiny()
    images, timesteps, labels = make_inputs(3)
    expected = model(images, timesteps, labels)
    changed = model(images, timesteps + torch.tensor([0, 0, 5]), labels)
    torch.testing.assert_close(changed[:2], expected[:2])
    assert not torch.allclose(changed[2], expected[2])
    changed = model(images, timesteps, torch.tensor([0, 1, 3]))  # 3: no class
    torch.testing.assert_close(changed[:2], expected[:2])
    assert not torch.allclose(changed[2], expected[2])


def test_the_sinusoidal_embedding_equals_one_by_hand():
    embedding = sinusoidal_embedding(torch.tensor([0, 3]), 4)
    slow = 3 / math.sqrt(10_000)
    by_hand = [[1, 1, 0, 0], [math.cos(3), math.cos(slow), math.sin(3), math.sin(slow)]]
    torch.testing.assert_close(embedding, torch.tensor(by_hand))


# ---- starting from a classifier ------------------------------------------------------------------------------


def build_classifier(**changes) -> SwinTransformer:
    torch.manual_seed(7)
    return SwinTransformer(**TINY | changes, num_classes=5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_gets_the_weights_of_the_classifier(channels):
    trained, model = build_classifier(), build_tiny(channels)
    assert load_encoder_weights(model, trained.state_dict()) == []
    kernel = model.encoder.patch_embed.proj.weight
    theirs = trained.patch_embed.proj.weight
    torch.testing.assert_close(kernel[:, :channels], theirs if channels == 3 else theirs.sum(1, keepdim=True))
    assert not kernel[:, channels:].any()  # the class channels
    unchanged = {
        name: value for name, value in model.encoder.state_dict().items() if "patch_embed.proj.weight" not in name
    }
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in unchanged.items())
