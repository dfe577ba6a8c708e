"""Per-image statistics, from which a score can be recomputed on any resample of the images.

A finished run writes these statistics to image_statistics.npz in its experiment directory, and stats.bootstrap computes
confidence intervals from this file. The file contains only arrays, no pickles.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from engine.files import write_atomically

FILE_NAME = "image_statistics.npz"


class SavedArrays:
    """Base class for dataclasses of arrays that are saved in image_statistics.npz."""

    def save(self, folder: Path, name: str = FILE_NAME) -> None:
        """Write the arrays to a file in an existing folder, usually an experiment directory."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_atomically(folder / name, lambda file: np.savez_compressed(file, **arrays))


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


def compact(matches: Matches) -> Matches:
    """Return matches with the same average precision on every resample of the images, which need a third of the space.

    Only the order of the scores matters, so ranks replace them: 0 for the lowest, equal for equal scores. Detections
    with a lower score than all matched ones of their class are left out: precision counts only at true positives."""
    matched = (matches.true_positives | matches.ignored).any(axis=1)
    lowest = np.full(len(matches.class_names), np.inf)
    np.minimum.at(lowest, matches.detection_classes[matched], matches.scores[matched])
    kept = matches.scores >= lowest[matches.detection_classes]
    names = ("detection_images", "detection_classes", "true_positives", "ignored")
    ranks = np.unique(matches.scores[kept], return_inverse=True)[1].astype(np.float64)
    return replace(matches, scores=ranks, **{name: getattr(matches, name)[kept] for name in names})


def load_statistics(folder: Path, name: str = FILE_NAME) -> Statistics:
    """Load the per-image statistics in a folder, usually an experiment's. The arrays' names decide which class it is.

    Raises ValueError naming the file if it is missing, corrupt or contains unexpected arrays."""
    path = folder / name
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
