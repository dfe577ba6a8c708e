import math
import sys

import pytest
import torch

from diffusion.data import to_bytes, to_unit
from diffusion.sampling import image_generator
from diffusion.schedule import NoiseConfig, NoiseSchedule, build_scheduler


def alphas_cumprod(**changes) -> torch.Tensor:
    """Return a_t of every timestep."""
    return build_scheduler(NoiseConfig(**changes)).alphas_cumprod.double()


@pytest.mark.parametrize("timesteps", [300, 500])
def test_the_cosine_schedule_is_the_papers(timesteps):
    def f(t: int) -> float:
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = torch.tensor([f(t + 1) / f(0) for t in range(timesteps)], dtype=torch.float64)
    a = alphas_cumprod(timesteps=timesteps)
    torch.testing.assert_close(a[:-1], expected[:-1], atol=1e-5, rtol=1e-3)
    assert float(a[-1]) == pytest.approx(0.001 * float(a[-2]), rel=1e-3)  # beta_t is at most 0.999


def test_the_linear_schedule_of_1000_steps_is_the_papers():
    expected = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    torch.testing.assert_close(alphas_cumprod(timesteps=1000, schedule="linear"), expected, atol=1e-5, rtol=1e-3)


def make_images_and_noise() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(3, 1, 4, 4) * 2 - 1, torch.randn(3, 1, 4, 4), torch.tensor([0, 250, 499])


def test_image_and_noise_can_be_computed_from_v():
    images, noise, timesteps = make_images_and_noise()
    schedule = NoiseSchedule(NoiseConfig(objective="v"))
    noisy, v = schedule.add_noise(images, noise, timesteps), schedule.target(images, noise, timesteps)
    a = alphas_cumprod()[timesteps].view(3, 1, 1, 1).float()
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * v, images)
    torch.testing.assert_close(a.sqrt() * v + (1 - a).sqrt() * noisy, noise)


def test_without_diffusers_the_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"diffusers is not installed: pip install -e '\.\[diffusion\]'"):
        build_scheduler(NoiseConfig())


def test_every_image_has_its_own_random_numbers():
    draws = {float(torch.rand((), generator=image_generator(seed, index))) for seed in (0, 1) for index in (0, 1)}
    assert len(draws) == 4
    assert float(torch.rand((), generator=image_generator(1, 0))) in draws


def test_to_bytes_inverts_to_unit():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(values)), values)
    assert (to_unit(values).min(), to_unit(values).max()) == (-1, 1)
