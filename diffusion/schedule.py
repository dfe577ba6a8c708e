"""The noise schedule and the prediction target, with the schedulers of diffusers.

Noise is added to an image x as x_t = sqrt(a_t) x + sqrt(1 - a_t) n, where n is Gaussian noise and t an integer from 0
to timesteps - 1. a_t (alphas_cumprod in diffusers) falls from nearly 1 to nearly 0:

    cosine    a_t is the squared cosine of Nichol and Dhariwal (arXiv 2102.09672, eq. 17)
    linear    the noise variance beta_t rises linearly from 0.1 / timesteps to 20 / timesteps (at most 0.999); for 1,000
              timesteps these are the 1e-4 and 0.02 of Ho et al. (arXiv 2006.11239)

The model predicts the noise n ("epsilon"), or v = sqrt(a_t) n - sqrt(1 - a_t) x (Salimans and Ho, arXiv 2202.00512).
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from engine.config import Config

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

BETA_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}  # diffusers' names
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}
TRAILING = {"timestep_spacing": "trailing"}  # sampling starts at the last timestep, where images are pure noise
SAMPLERS = {
    "ddpm": ("DDPMScheduler", TRAILING),  # arXiv 2006.11239: adds noise in every step; best with all timesteps
    "ddim": ("DDIMScheduler", TRAILING),  # arXiv 2010.02502: adds no noise; a tenth of the timesteps is enough
    # arXiv 2211.01095: needs even fewer. The log SNR is clipped because cosine schedules end in nearly pure noise.
    "dpm++": ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
}


class NoiseConfig(Config):
    """The diffusion process and the prediction target."""

    timesteps: int = Field(500, ge=2, description="number of timesteps from image to noise")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="noise schedule, see diffusion/schedule.py")
    objective: Literal["epsilon", "v"] = Field("epsilon", description="prediction target, see diffusion/schedule.py")
    label_dropout: float = Field(
        0.1, ge=0, le=1, description="share of training images whose class is dropped; guidance needs more than 0"
    )


def build_scheduler(config: NoiseConfig, sampler: str = "ddpm") -> "SchedulerMixin":
    """Return a scheduler of diffusers. sampler: a key of SAMPLERS.

    Raises ValueError if diffusers is not installed."""
    try:
        import diffusers  # here, because it takes seconds and detectors do not need it
    except ModuleNotFoundError:
        raise ValueError("diffusers is not installed: pip install -e '.[diffusion]'") from None
    name, options = SAMPLERS[sampler]
    return getattr(diffusers, name)(
        num_train_timesteps=config.timesteps,
        beta_schedule=BETA_SCHEDULES[config.schedule],
        beta_start=0.1 / config.timesteps,
        beta_end=min(20 / config.timesteps, 0.999),
        prediction_type=PREDICTION_TYPES[config.objective],
        **options,
    )


class NoiseSchedule:
    """Add noise to images and compute the prediction target."""

    def __init__(self, config: NoiseConfig):
        self.config = config
        self.scheduler = build_scheduler(config)

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy images x_t. images, noise and x_t: (B, C, H, W) float. timesteps: (B,) int64."""
        return self.scheduler.add_noise(images, noise, timesteps)

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the prediction target, (B, C, H, W) float, for the arguments of `add_noise`."""
        if self.config.objective == "epsilon":
            return noise
        return self.scheduler.get_velocity(images, noise, timesteps)

    def zero_loss(self, mean_square: float) -> float:
        """Return the mean squared error of always predicting zero. mean_square: mean square of pixels."""
        if self.config.objective == "epsilon":
            return 1.0
        signal = float(self.scheduler.alphas_cumprod.mean())
        return signal + (1 - signal) * mean_square
