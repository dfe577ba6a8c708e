import pytest
import torch
from torch import Tensor, nn

from data import eval_batches
from diffusion.sampling import SamplingConfig, check_sampling, denoise, generate, image_generator, predict_guided
from diffusion.schedule import SAMPLERS, NoiseConfig, build_scheduler

SMALL = NoiseConfig(timesteps=20)


def sample(model: nn.Module, sampling: SamplingConfig, labels=(0, 1, 2), batch_size=8, seed=0) -> Tensor:
    batches = eval_batches(len(labels), batch_size, rank=0, world_size=1)
    parts = generate(model, SMALL, sampling, torch.tensor(labels), batches, 8, seed)
    return torch.cat([images[-1] for _, images in parts])


class GaussianDenoiser(nn.Module):
    """Optimal denoiser of images with independent Gaussian pixels, in closed form.

    E[noise | x_t] = sqrt(1 - a) (x_t - sqrt(a) mean) / (a std^2 + 1 - a)."""

    image_channels = 1

    def __init__(self, noise: NoiseConfig, mean: float, std: float):
        super().__init__()
        self.signal, self.objective, self.mean, self.std = (
            build_scheduler(noise).alphas_cumprod, noise.objective, mean, std
        )  # fmt: skip

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        a = self.signal[timesteps].view(-1, 1, 1, 1)
        noise = (1 - a).sqrt() * (images - a.sqrt() * self.mean) / (a * self.std**2 + 1 - a)
        if self.objective == "epsilon":
            return noise
        return a.sqrt() * noise - (1 - a).sqrt() * (images - (1 - a).sqrt() * noise) / a.sqrt()


@pytest.mark.parametrize("objective", ["epsilon", "v"])
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 100), ("ddim", 100), ("ddim", 50), ("dpm++", 50)])
def test_samples_of_a_known_gaussian_have_its_mean_and_standard_deviation(sampler, steps, objective):
    noise = NoiseConfig(timesteps=100, objective=objective)
    model = GaussianDenoiser(noise, mean=0.3, std=0.15)  # within -1 to 1, because samplers clip to this range
    sampling = SamplingConfig(sampler=sampler, steps=steps)
    *_, images = denoise(model, noise, sampling, torch.zeros(4, dtype=torch.int64), generators(4), 64)
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(images.std()) == pytest.approx(0.15, abs=0.02)


def generators(count: int) -> list[torch.Generator]:
    return [image_generator(0, index) for index in range(count)]


MIDDLE = 5  # of ten steps, where image and noise have about equal shares


def test_a_step_of_ddim_recomputes_the_noise_from_the_clipped_image():
    noise, sampling = NoiseConfig(timesteps=10), SamplingConfig(steps=10)
    model, labels = GaussianDenoiser(noise, mean=3, std=1e-3), torch.zeros(2, dtype=torch.int64)  # 3 is clipped to 1
    start, end = list(denoise(model, noise, sampling, labels, generators(2), 8))[9 - MIDDLE - 1 : 9 - MIDDLE + 1]
    a, before = (build_scheduler(noise).alphas_cumprod[timestep] for timestep in (MIDDLE, MIDDLE - 1))
    remaining = (start - a.sqrt()) / (1 - a).sqrt()
    torch.testing.assert_close(end, before.sqrt() + (1 - before).sqrt() * remaining, atol=1e-5, rtol=0)


# ---- seeds, batches, guidance and frames ---------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_depend_only_on_the_seed(unet, sampler):
    sampling = SamplingConfig(sampler=sampler, steps=4)
    first = sample(unet, sampling)
    torch.rand(5)
    assert torch.equal(sample(unet, sampling), first)
    assert not torch.equal(sample(unet, sampling, seed=1), first)


def test_samples_do_not_depend_on_the_batch_size(unet):
    sampling = SamplingConfig(sampler="ddpm", steps=4)
    difference = (sample(unet, sampling, batch_size=8).int() - sample(unet, sampling, batch_size=2).int()).abs()
    assert difference.max() <= 1  # of 255, because sums are rounded differently


def test_guidance_1_is_the_conditional_and_guidance_0_the_unconditional_prediction(unet):
    images, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 9])
    labels, no_class = torch.tensor([0, 2]), torch.tensor([3, 3])
    with torch.no_grad():
        conditional, unconditional = unet(images, timesteps, labels), unet(images, timesteps, no_class)
        torch.testing.assert_close(predict_guided(unet, images, timesteps, labels, 1.0), conditional)
        torch.testing.assert_close(predict_guided(unet, images, timesteps, labels, 0.0), unconditional)
        expected = unconditional + 3 * (conditional - unconditional)
        torch.testing.assert_close(predict_guided(unet, images, timesteps, labels, 3.0), expected)


@pytest.mark.parametrize(("frames", "kept"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_the_requested_number_of_steps_is_returned_including_the_last(unet, frames, kept):
    batches = eval_batches(3, 2, rank=0, world_size=1)
    sampling = SamplingConfig(steps=4)
    parts = list(generate(unet, SMALL, sampling, torch.tensor([0, 1, 2]), batches, 8, 0, frames=frames))
    assert [tuple(images.shape) for _, images in parts] == [(kept, 2, 1, 8, 8), (kept, 1, 1, 8, 8)]
    assert torch.equal(torch.cat([images[-1] for _, images in parts]), sample(unet, sampling, batch_size=2))


@pytest.mark.parametrize(
    ("noise", "sampling", "message"),
    [
        (SMALL, {"steps": 50}, r"steps 50: .*diffusion\.timesteps.*20"),
        (NoiseConfig(timesteps=100), {"steps": 60, "sampler": "ddpm"}, "steps 60: ddpm .*100.* 50"),
        (NoiseConfig(timesteps=100), {"steps": 60, "sampler": "ddim"}, "steps 60: ddim .*100.* 50"),
        (NoiseConfig(label_dropout=0), {"guidance": 2}, r"guidance 2: expected 1, .*diffusion\.label_dropout"),
        (SMALL, {"steps": 20, "sampler": "dpm++"}, r"steps 20: .*dpm\+\+.* fewer"),
    ],
)
def test_invalid_steps_and_guidance_are_rejected(noise, sampling, message):
    with pytest.raises(ValueError, match=message):
        check_sampling(noise, SamplingConfig(**sampling))
