"""Per-image statistics: what a task leaves behind so that its score can be computed again on any choice of images.

A task writes image_statistics.npz into its experiment once; whoever asks how sure the score is reads it
(stats.bootstrap). Arrays only, no pickles.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from engine.files import write_whole

FILE_NAME = "image_statistics.npz"


class Saved:
    """A dataclass of arrays that is kept in image_statistics.npz."""

    def save(self, experiment: Path) -> None:
        """Write image_statistics.npz into an experiment directory."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_whole(experiment / FILE_NAME, lambda file: np.savez_compressed(file, **arrays))


@dataclass(frozen=True)
class Matches(Saved):
    """Detections matched to objects: all that average precision needs.

    image_ids: (I,) int64, every validation image, in the order in which the evaluator reads them.
    class_names: (C,) text.
    iou_thresholds: (T,) float64.

    One row per detection, ordered by class, then image, then as the evaluator ranked them within the image (best
    first; this order decides between equal scores):
    detection_images: (D,) int32, position in image_ids.
    detection_classes: (D,) int16, position in class_names.
    scores: (D,) float64.
    true_positives: (D, T) bool, matched to an object that counts.
    ignored: (D, T) bool, neither right nor wrong (matched to a crowd).

    One row per object that counts, so no crowds:
    object_images: (G,) int32.
    object_classes: (G,) int16."""

    image_ids: np.ndarray
    class_names: np.ndarray
    iou_thresholds: np.ndarray
    detection_images: np.ndarray
    detection_classes: np.ndarray
    scores: np.ndarray
    true_positives: np.ndarray
    ignored: np.ndarray
    object_images: np.ndarray
    object_classes: np.ndarray


@dataclass(frozen=True)
class Hits(Saved):
    """Guesses of a classifier held against the truth: all that top-1 and top-5 accuracy need.

    image_ids: (I,) text, every validation image: '<class folder>/<file>', or its number where it has no file.
    class_names: (C,) text.
    labels: (I,) int16, the true class, position in class_names.
    hits: (I,) bool, the true class is the first guess.
    in_top5: (I,) bool, the true class is among the first five guesses."""

    image_ids: np.ndarray
    class_names: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    in_top5: np.ndarray


@dataclass(frozen=True)
class Losses(Saved):
    """A loss for each image: all that their mean needs.

    name: () text, what the mean is called among the scores.
    image_ids: (I,) text, every validation image, as the data set names or numbers it.
    class_names: (C,) text.
    labels: (I,) int16, the class, position in class_names.
    losses: (I,) float64."""

    name: np.ndarray
    image_ids: np.ndarray
    class_names: np.ndarray
    labels: np.ndarray
    losses: np.ndarray


Statistics = Matches | Hits | Losses


def load_statistics(experiment: Path) -> Statistics:
    """Read image_statistics.npz of an experiment, as the class whose arrays are in it.

    Raises ValueError naming the file if it is missing, or holds other arrays."""
    path = experiment / FILE_NAME
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for kind in (Matches, Hits, Losses):
            if arrays.keys() == {field.name for field in fields(kind)}:
                return kind(**arrays)
        raise ValueError(f"it holds {', '.join(arrays)}")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; the task writes it when a run is finished") from None
    except Exception as error:  # zipfile and zlib raise their own kinds
        raise ValueError(f"{path}: cannot be read ({error}); expected the statistics of a finished run") from error
