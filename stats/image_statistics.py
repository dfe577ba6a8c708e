"""Per-image statistics, from which a score can be recomputed on any resample of the images.

A finished run writes these statistics to image_statistics.npz in its experiment directory, and stats.bootstrap computes
confidence intervals from this file. The file contains only arrays, no pickles.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from engine.files import write_atomically

FILE_NAME = "image_statistics.npz"


class SavedArrays:
    """Base class for dataclasses of arrays that are saved in image_statistics.npz."""

    def save(self, experiment: Path) -> None:
        """Write image_statistics.npz to an experiment directory."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_atomically(experiment / FILE_NAME, lambda file: np.savez_compressed(file, **arrays))


@dataclass(frozen=True)
class Matches(SavedArrays):
    """Detections matched to objects, sufficient to compute average precision.

    image_ids: (I,) int64, the ids of all validation images, in the evaluator's order.
    class_names: (C,) text.
    iou_thresholds: (T,) float64.

    One row per detection, ordered by class, then by image, then by the evaluator's rank within the image (best first).
    Detections with equal scores are ranked in this order.
    detection_images: (D,) int32, index into image_ids.
    detection_classes: (D,) int16, index into class_names.
    scores: (D,) float64.
    true_positives: (D, T) bool, whether the detection is matched to an object that is not a crowd.
    ignored: (D, T) bool, whether it is matched to a crowd. Then it is neither a true nor a false positive.

    One row per object that is not a crowd:
    object_images: (G,) int32, index into image_ids.
    object_classes: (G,) int16, index into class_names."""

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
class Hits(SavedArrays):
    """Correctness of a classifier's predictions, sufficient to compute top-1 and top-5 accuracy.

    image_ids: (I,) text, for each validation image '<class folder>/<file>', or the image's number if it has no file.
    class_names: (C,) text.
    labels: (I,) int16, the true class, index into class_names.
    hits: (I,) bool, whether the true class is the top prediction.
    in_top5: (I,) bool, whether the true class is among the top-5 predictions."""

    image_ids: np.ndarray
    class_names: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    in_top5: np.ndarray


@dataclass(frozen=True)
class Losses(SavedArrays):
    """The loss on each image, sufficient to compute the mean loss.

    name: () text, the key of the mean loss in the scores.
    image_ids: (I,) text, the name or number of each validation image in the data set.
    class_names: (C,) text.
    labels: (I,) int16, the class of each image, index into class_names.
    losses: (I,) float64."""

    name: np.ndarray
    image_ids: np.ndarray
    class_names: np.ndarray
    labels: np.ndarray
    losses: np.ndarray


Statistics = Matches | Hits | Losses


def load_statistics(experiment: Path) -> Statistics:
    """Load image_statistics.npz of an experiment. The names of the arrays decide which class is returned.

    Raises ValueError naming the file if it is missing, corrupt or contains unexpected arrays."""
    path = experiment / FILE_NAME
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for kind in (Matches, Hits, Losses):
            if arrays.keys() == {field.name for field in fields(kind)}:
                return kind(**arrays)
        raise ValueError(f"unexpected arrays: {', '.join(arrays)}")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; it is written when a run finishes") from None
    except Exception as error:  # zipfile and zlib raise their own exception types
        raise ValueError(f"{path}: cannot be read ({error}); expected the statistics of a finished run") from error
