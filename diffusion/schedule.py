"""How noise is added to images, and what the network is to predict: by the schedulers of diffusers.

An image x and normal noise n become x_t = sqrt(a_t) x + sqrt(1 - a_t) n, for t from 0 to timesteps - 1, where a_t falls
from nearly 1 to nearly 0:

    cosine    a_t is the squared cosine of Nichol and Dhariwal (arXiv 2102.09672, eq. 17)
    linear    the variances of the single steps rise linearly (Ho et al., arXiv 2006.11239), from 0.1 / timesteps to
              20 / timesteps, at most 0.999: theirs, 1e-4 to 0.02, are for 1,000

Predicted is the noise n ("epsilon"), or v = sqrt(a_t) n - sqrt(1 - a_t) x (Salimans and Ho, arXiv 2202.00512).
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from engine.config import Config

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

BETA_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}  # diffusers' names
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}
TRAILING = {"timestep_spacing": "trailing"}  # so that the first step is at the last timestep, where noise is pure
SAMPLERS = {
    "ddpm": ("DDPMScheduler", TRAILING),  # arXiv 2006.11239: noise in every step; best with all steps
    "ddim": ("DDIMScheduler", TRAILING),  # arXiv 2010.02502: the first noise decides all; a tenth of the steps will do
    # arXiv 2211.01095: still fewer steps. The cosine schedule ends in noise so pure that its logarithm must be cut off.
    "dpm++": ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
}


class NoiseConfig(Config):
    """The process that turns images into noise, and its reversal."""

    timesteps: int = Field(500, ge=2, description="steps from image to noise")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="how fast the noise grows")
    objective: Literal["epsilon", "v"] = Field("epsilon", description="what is predicted")
    label_dropout: float = Field(
        0.1, ge=0, le=1, description="share of the training images without their class; guidance needs some"
    )


def build_scheduler(config: NoiseConfig, sampler: str = "ddpm") -> "SchedulerMixin":
    """A scheduler of diffusers. sampler: a key of SAMPLERS.

    Raises ValueError where diffusers is not installed."""
    try:
        import diffusers  # here, because it takes seconds, and detectors can do without
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
    """Noisy images, and what to predict of them."""

    def __init__(self, config: NoiseConfig):
        self.config = config
        self.scheduler = build_scheduler(config)

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """images, noise: (B, C, H, W) float. timesteps: (B,) int64. Returns x_t, (B, C, H, W)."""
        return self.scheduler.add_noise(images, noise, timesteps)

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to predict, (B, C, H, W), from what `add_noise` takes."""
        if self.config.objective == "epsilon":
            return noise
        return self.scheduler.get_velocity(images, noise, timesteps)

    def zero_loss(self, mean_square: float) -> float:
        """The mean squared error of predicting zero at every timestep, of images of this mean square."""
        if self.config.objective == "epsilon":
            return 1.0
        signal = float(self.scheduler.alphas_cumprod.mean())
        return signal + (1 - signal) * mean_square
