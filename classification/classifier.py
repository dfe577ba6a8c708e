"""A trained classifier, ready for use: from an experiment, a release, a config or a public file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from classification.data import LISTED, DataConfig, shown_names
from classification.task import ClassificationConfig, EvalConfig, build_swin, read_classifier
from classification.transforms import eval_transform
from data import DatasetError, Transform
from engine.checkpoint import newest_checkpoint
from engine.compute.precision import Precision
from engine.config import load_config
from engine.strict_yaml import ConfigError
from engine.text import did_you_mean, listed, nearest
from model import SWIN_VARIANTS, SwinTransformer, load_swin_weights, swin_arguments
from records.experiment import read_experiment_config
from weights.registry import find_weights, read_registry
from weights.release import PUBLISHED_WEIGHTS, SUFFIX, read_safetensors, released_config

PIXELS_PER_WINDOW = 32  # image side over window side of the published Swins: 224 / 7, 384 / 12


@dataclass(frozen=True)
class Classifier:
    """A model, on the CPU, and how its images are prepared."""

    path: Path  # of its weights
    model: SwinTransformer
    class_ids: list[str]  # of its outputs: names of folders, or numbers where the file does not say
    input_size: int
    resize_size: int  # of the shorter side, before the center crop
    precision: Precision = "fp32"
    channels_last: bool = False
    experiment: Path | None = None  # that it was trained in
    data: DataConfig | None = None  # of its config, if it has one

    @property
    def class_names(self) -> list[str]:
        """The classes as people call them."""
        return shown_names(self.class_ids)

    @property
    def transform(self) -> Transform:
        """From an RGB image of any size to one of input_size."""
        return eval_transform(self.input_size, self.resize_size)

    def outputs_of(self, class_ids: Sequence[str]) -> np.ndarray:
        """Return the output of each of these classes, found by name, (len(class_ids),) int64.

        If the outputs have no names, they are taken in order. Raises DatasetError for a class that is not found."""
        index = {name: output for output, name in enumerate(self.class_ids)}
        unknown = [name for name in class_ids if name not in index]
        if unknown and self.class_ids == list(map(str, range(len(class_ids)))):
            return np.arange(len(class_ids))
        if unknown:
            raise DatasetError(
                f"class {listed(unknown, LISTED)}: not among the {len(self.class_ids)} of {self.path} "
                f"({listed(self.class_ids, LISTED)})"
            )
        return np.array([index[name] for name in class_ids], np.int64)


def load_classifier(named: str, overrides: Sequence[str] = ()) -> Classifier:
    """Load the classifier that a user names.

    named: an experiment or one of its checkpoints, a folder made by weights.publish or its weights, a config with
    `model.weights`, a name of saved_weights/registry.yaml, or a public file of a Swin.
    overrides: of the config of an experiment, or of the config that is named.
    Raises ValueError if there is no such thing, or if it is not a classifier."""
    path = Path(named)
    if path.suffix in (".yaml", ".yml"):
        config = load_config(path, overrides, ClassificationConfig)
        if config.model.weights is None:
            raise ConfigError(f"{path}: no model.weights in it; add model.weights=imagenet1k, a file or an experiment")
        try:
            file = find_weights(config.model.weights, config.model.name)
            return _configured(config, file, config.model.average_weights)
        except ValueError as error:
            raise ValueError(f"model.weights '{config.model.weights}': {error}") from error
    published = path / PUBLISHED_WEIGHTS if path.is_dir() else path
    facts = read_safetensors(published)[1] if published.suffix == SUFFIX and published.is_file() else {}
    experiment = path if path.is_dir() else path.parent.parent
    if not facts and (experiment / "config.yaml").is_file():
        config = read_experiment_config(experiment, ClassificationConfig, overrides)
        return _configured(config, newest_checkpoint(path / "checkpoints") if path.is_dir() else path, True, experiment)
    if overrides:
        raise ConfigError(f"{overrides[0]}: {named} has no config to replace it in; name an experiment or a config")
    if facts:
        return _configured(released_config(published, facts, ClassificationConfig), published)
    return _of_public_file(named)


def _configured(
    config: ClassificationConfig, file: Path, average: bool = True, experiment: Path | None = None
) -> Classifier:
    weights, class_ids = read_classifier(file, average)
    model = build_swin(config.model, len(weights["head.weight"]))
    load_swin_weights(model, weights)
    return Classifier(
        file,
        model.eval(),
        class_ids or _numbers(model),
        config.model.input_size,
        config.resize_size,
        config.train.precision,
        config.train.channels_last,
        experiment,
        config.data,
    )


def _of_public_file(named: str) -> Classifier:
    swins = {entry.name: entry for entry in read_registry().weights if entry.trunk in SWIN_VARIANTS}
    if named not in swins and not Path(named).is_file():
        names = did_you_mean(nearest(named, swins)) or f", such as {', '.join(list(swins)[:3])}"
        raise ValueError(
            f"{named}: no file, experiment or config, nor the name of a public Swin{names} (python -m weights list)"
        )
    file = find_weights(named, swins[named].trunk if named in swins else "")
    weights, class_ids = read_classifier(file)
    try:
        arguments = swin_arguments(weights)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    model = SwinTransformer(**arguments)
    load_swin_weights(model, weights)
    known = next((entry for entry in swins.values() if entry.file == file.name), None)
    input_size = known.image_size if known else PIXELS_PER_WINDOW * arguments["window_size"]
    resize_size = known.resize_size if known else round(input_size / EvalConfig().crop_fraction)
    return Classifier(file, model.eval(), class_ids or _numbers(model), input_size, resize_size)


def _numbers(model: SwinTransformer) -> list[str]:
    """Return names for outputs without names."""
    return list(map(str, range(model.head.out_features)))
