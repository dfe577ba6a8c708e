"""Per-image statistics: what a task leaves behind so that its score can be computed again on any choice of images.

A task writes image_statistics.npz into its experiment once; whoever asks how sure the score is reads it
(ablation.bootstrap). Arrays only, no pickles.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from engine.files import write_whole

FILE_NAME = "image_statistics.npz"


@dataclass(frozen=True)
class Matches:
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

    def save(self, experiment: Path) -> None:
        """Write image_statistics.npz into an experiment directory."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_whole(experiment / FILE_NAME, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, experiment: Path) -> "Matches":
        """Read them back. Raises ValueError naming the file if it is absent or not what `save` wrote."""
        path = experiment / FILE_NAME
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; the task writes it when a run is finished") from None
        except Exception as error:  # zipfile and zlib raise their own kinds
            raise ValueError(f"{path}: cannot be read ({error}); expected the statistics of a finished run") from error
