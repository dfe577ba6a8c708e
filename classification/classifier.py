"""Load a trained classifier from an experiment, a published folder, a config or a public checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from classification.data import MAX_LISTED, DataConfig, display_names
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

PIXELS_PER_WINDOW = 32  # input size divided by window size of the published Swins: 224 / 7, 384 / 12


@dataclass(frozen=True)
class Classifier:
    """A trained model on the CPU, and how to prepare images for it."""

    path: Path  # file of the weights
    model: SwinTransformer
    class_ids: list[str]  # one per output: folder name of the class, or output index if the file has no names
    input_size: int  # side of the square input, in pixels
    resize_size: int  # shorter side of the image before the center crop, in pixels
    precision: Precision = "fp32"
    channels_last: bool = False
    experiment: Path | None = None  # where the model was trained; None if it was not loaded from an experiment
    data: DataConfig | None = None  # data section of the config; None if the model was loaded without a config

    @property
    def class_names(self) -> list[str]:
        """Class names to display."""
        return display_names(self.class_ids)

    @property
    def transform(self) -> Transform:
        """Transform from an RGB image of any size to one of input_size x input_size pixels."""
        return eval_transform(self.input_size, self.resize_size)

    def output_indices(self, class_ids: Sequence[str]) -> np.ndarray:
        """Return the output index of each class, (len(class_ids),) int64.

        Classes are matched to outputs by name. Unnamed outputs are matched in order if there are as many as classes.
        Raises DatasetError if a class has no output."""
        index = {name: output for output, name in enumerate(self.class_ids)}
        unknown = [name for name in class_ids if name not in index]
        if unknown and self.class_ids == list(map(str, range(len(class_ids)))):
            return np.arange(len(class_ids))
        if unknown:
            raise DatasetError(
                f"class {listed(unknown, MAX_LISTED)}: not among the {len(self.class_ids)} classes of {self.path} "
                f"({listed(self.class_ids, MAX_LISTED)})"
            )
        return np.array([index[name] for name in class_ids], np.int64)


def load_classifier(name_or_path: str, overrides: Sequence[str] = ()) -> Classifier:
    """Load a classifier by name or path.

    name_or_path: an experiment or its checkpoint, a folder made by weights.publish or its weights file, a config with
    `model.weights`, a name in saved_weights/registry.yaml, or a public Swin checkpoint.
    overrides: section.field=value, to change the config; only for an experiment or a config.
    Raises ValueError if `name_or_path` does not exist or is not a classifier."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        config = load_config(path, overrides, ClassificationConfig)
        if config.model.weights is None:
            raise ConfigError(f"{path}: model.weights is null; add model.weights=imagenet1k, a file or an experiment")
        try:
            file = find_weights(config.model.weights, config.model.name).path
            return _build(config, file, config.model.average_weights)
        except ValueError as error:
            raise ValueError(f"model.weights '{config.model.weights}': {error}") from error
    published = path / PUBLISHED_WEIGHTS if path.is_dir() else path
    facts = read_safetensors(published)[1] if published.suffix == SUFFIX and published.is_file() else {}
    experiment = path if path.is_dir() else path.parent.parent
    if not facts and (experiment / "config.yaml").is_file():
        config = read_experiment_config(experiment, ClassificationConfig, overrides)
        return _build(config, newest_checkpoint(path / "checkpoints") if path.is_dir() else path, True, experiment)
    if overrides:
        raise ConfigError(f"{overrides[0]}: {name_or_path} has no config to override; name an experiment or a config")
    if facts:
        return _build(released_config(published, facts, ClassificationConfig), published)
    return _from_public_file(name_or_path)


def _build(
    config: ClassificationConfig, file: Path, average: bool = True, experiment: Path | None = None
) -> Classifier:
    weights, class_ids = read_classifier(file, average)
    model = build_swin(config.model, len(weights["head.weight"]))
    load_swin_weights(model, weights)
    return Classifier(
        file,
        model.eval(),
        class_ids or _numbered_class_ids(model),
        config.model.input_size,
        config.resize_size,
        config.train.precision,
        config.train.channels_last,
        experiment,
        config.data,
    )


def _from_public_file(name_or_path: str) -> Classifier:
    swins = {entry.name: entry for entry in read_registry().weights if entry.trunk in SWIN_VARIANTS}
    if name_or_path not in swins and not Path(name_or_path).is_file():
        names = did_you_mean(nearest(name_or_path, swins)) or f", such as {', '.join(list(swins)[:3])}"
        raise ValueError(
            f"{name_or_path}: not a file, experiment, config or name of a public Swin{names} (python -m weights list)"
        )
    file = find_weights(name_or_path, swins[name_or_path].trunk if name_or_path in swins else "").path
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
    return Classifier(file, model.eval(), class_ids or _numbered_class_ids(model), input_size, resize_size)


def _numbered_class_ids(model: SwinTransformer) -> list[str]:
    """Return the numbers of the outputs as class ids, for a file without class names."""
    return list(map(str, range(model.head.out_features)))
