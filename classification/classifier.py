"""A trained classifier with all that it takes to use it, from an experiment, a config or a public file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.transforms import v2

from classification.data import LISTED, DataConfig, imagenet_classes, shown_names
from classification.task import ClassificationConfig, EvalConfig, build_swin
from classification.transforms import eval_transform
from data import DatasetError
from engine.checkpoint import load_checkpoint, newest_checkpoint
from engine.config import load_config
from engine.experiment import read_experiment_config
from engine.precision import Precision
from engine.strict_yaml import ConfigError
from engine.weights import find_weights, read_registry, read_weights
from model import SwinTransformer, load_swin_weights, swin_arguments

WINDOWS_PER_SIDE = 32  # of the first map at the size that a public Swin was trained for: 224 = 7 * 32, 384 = 12 * 32
WHOLE_IMAGE_SIZE = 384  # from there on classifiers are scored on the whole image, not on its middle


@dataclass(frozen=True)
class Classifier:
    """A model, on the CPU, and how it wants to be asked."""

    path: Path  # of its weights
    model: SwinTransformer
    class_ids: list[str]  # of its outputs: names of folders, or numbers where the file does not tell
    input_size: int
    crop_fraction: float
    precision: Precision = "fp32"
    channels_last: bool = False
    experiment: Path | None = None  # that it was trained in
    data: DataConfig | None = None  # of its config, if it has one

    @property
    def class_names(self) -> list[str]:
        """The classes as people call them."""
        return shown_names(self.class_ids)

    @property
    def transform(self) -> v2.Compose:
        """From an RGB image of any size to one of input_size."""
        return eval_transform(self.input_size, self.crop_fraction)

    def outputs_of(self, class_ids: Sequence[str]) -> np.ndarray:
        """Which output stands for each of these classes, (len(class_ids),) int64: the one of that name.

        Where the classifier has numbers for names, the k-th if there are as many. Raises DatasetError otherwise."""
        index = {name: output for output, name in enumerate(self.class_ids)}
        unknown = [name for name in class_ids if name not in index]
        if unknown and self.class_ids == list(map(str, range(len(class_ids)))):
            return np.arange(len(class_ids))
        if unknown:
            raise DatasetError(
                f"class {', '.join(unknown[:LISTED])}{', ...' * (len(unknown) > LISTED)}: not among the "
                f"{len(self.class_ids)} of {self.path} ({', '.join(self.class_ids[:LISTED])}, ...)"
            )
        return np.array([index[name] for name in class_ids], np.int64)


def load_classifier(named: str, overrides: Sequence[str] = ()) -> Classifier:
    """Build and fill the classifier that a user names.

    named: an experiment or one of its checkpoints, a config whose `model.weights` says where to take them from, a
    name of saved_weights/registry.yaml, or a public file of a Swin. overrides: of the config, where there is one.
    Raises ValueError if there is no such thing, or if it is no classifier."""
    path = Path(named)
    if path.suffix in (".yaml", ".yml"):
        return _of_config(path, overrides)
    experiment = path if path.is_dir() else path.parent.parent
    if (experiment / "config.yaml").is_file():
        checkpoint = newest_checkpoint(path / "checkpoints") if path.is_dir() else path
        return _of_experiment(experiment, checkpoint, overrides)
    if overrides:
        raise ConfigError(
            f"{overrides[0]}: {named} has no config in which to replace it; name an experiment or a config"
        )
    return _of_public_file(named)


def _of_config(path: Path, overrides: Sequence[str]) -> Classifier:
    config = load_config(path, overrides, ClassificationConfig)
    if config.model.weights is None:
        raise ConfigError(f"{path}: no model.weights in it; add model.weights=imagenet1k, a file or an experiment")
    file = find_weights(config.model.weights, config.model.name)
    weights = read_weights(file, config.model.average_weights)
    classes = len(weights["head.fc.weight"] if "head.fc.weight" in weights else weights["head.weight"])
    model = build_swin(config.model, classes)
    load_swin_weights(model, weights)
    return _configured(file, model, _public_classes(classes), config, None)


def _of_experiment(experiment: Path, checkpoint: Path, overrides: Sequence[str]) -> Classifier:
    config = read_experiment_config(experiment, ClassificationConfig, overrides)
    class_ids = load_checkpoint(checkpoint)["data"]["classes"]
    model = build_swin(config.model, len(class_ids))
    load_swin_weights(model, read_weights(checkpoint))
    return _configured(checkpoint, model, class_ids, config, experiment)


def _of_public_file(named: str) -> Classifier:
    trunks = {entry.name: entry.trunk for entry in read_registry().weights}
    file = find_weights(named, trunks.get(named, ""))
    weights = read_weights(file)
    try:
        arguments = swin_arguments(weights)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    model = SwinTransformer(**arguments)
    load_swin_weights(model, weights)
    input_size = WINDOWS_PER_SIDE * arguments["window_size"]
    crop_fraction = 1.0 if input_size >= WHOLE_IMAGE_SIZE else EvalConfig().crop_fraction
    return Classifier(file, model.eval(), _public_classes(arguments["num_classes"]), input_size, crop_fraction)


def _configured(
    path: Path, model: SwinTransformer, class_ids: list[str], config: ClassificationConfig, experiment: Path | None
) -> Classifier:
    return Classifier(
        path,
        model.eval(),
        class_ids,
        input_size=config.model.input_size,
        crop_fraction=config.eval.crop_fraction,
        precision=config.train.precision,
        channels_last=config.train.channels_last,
        experiment=experiment,
        data=config.data,
    )


def _public_classes(count: int) -> list[str]:
    """Of as many outputs as ImageNet-1k has classes, these; otherwise numbers."""
    return list(imagenet_classes()) if count == len(imagenet_classes()) else list(map(str, range(count)))
