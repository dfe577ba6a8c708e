"""Load a trained diffusion model from its experiment."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from data import eval_batches
from diffusion.data import CHANNELS
from diffusion.model import SwinUNet
from diffusion.sampling import SamplingConfig, generate
from diffusion.task import DiffusionConfig, build_unet
from engine.checkpoint import load_checkpoint, newest_checkpoint, trained_weights
from engine.compute.precision import inference_precision
from engine.loading import load_exactly
from engine.text import listed
from records.experiment import read_experiment_config


class TrainedGenerator(NamedTuple):
    """A trained model on the CPU, and its config."""

    checkpoint: Path
    config: DiffusionConfig
    class_ids: list[str]
    model: SwinUNet

    def labels_of(self, names: Sequence[str]) -> list[int]:
        """Return the labels of classes given by name or number. Raises ValueError for an unknown class."""
        known = {str(label): label for label in range(len(self.class_ids))}
        known |= {name: label for label, name in enumerate(self.class_ids)}
        for name in names:
            if name not in known:
                expected = f"expected classes among {listed(self.class_ids, 20)}"
                raise ValueError(f"class {name!r}: not among the classes of {self.checkpoint}; {expected}")
        return [known[name] for name in names]

    def generate(
        self, sampling: SamplingConfig, labels: Tensor, seed: int, batch_size: int, frames: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Generate images in one process, see diffusion.sampling.generate. labels: (N,) int64 on the model's device."""
        return generate(
            self.model,
            self.config.diffusion,
            sampling,
            labels,
            eval_batches(len(labels), batch_size, rank=0, world_size=1),
            self.config.model.input_size,
            seed,
            inference_precision(self.config.train.precision, labels.device),
            frames,
        )


def load_generator(path: Path) -> TrainedGenerator:
    """Load the model from an experiment or checkpoint, with the moving average of the weights if there is one.

    Raises ValueError if `path` is not an experiment of diffusion.training, or if the experiment has no checkpoint."""
    experiment = path.parent.parent if path.is_file() else path
    config = read_experiment_config(experiment, DiffusionConfig)
    checkpoint = path if path.is_file() else newest_checkpoint(path / "checkpoints")
    state = load_checkpoint(checkpoint)
    class_ids = state["data"]["classes"]
    model = build_unet(config.model, CHANNELS[config.data.format], len(class_ids))
    load_exactly(model, trained_weights(state))
    return TrainedGenerator(checkpoint, config, class_ids, model.eval())
