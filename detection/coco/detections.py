"""The detections in one image, with conversion to COCO's results format and to Roboflow's supervision."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.terminal import printable

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections in one image, highest score first.

    boxes_xyxy: (n, 4) float64, pixels of the upright original image; the origin is its top left corner.
    scores: (n,) float64, probabilities.
    labels: (n,) int64, 1 to the number of classes.
    class_names: n names, one per detection. category_ids: (n,) int64, category ids in the annotation file."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    category_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        """Return a short summary without the arrays: 'Detections(3: WBC 0.98, RBC 0.95, RBC 0.43)'."""
        best = [
            f"{printable(name)} {score:.2f}" for name, score in zip(self.class_names[:5], self.scores, strict=False)
        ]
        return f"Detections({len(self)}: {', '.join(best)}{', ...' * (len(self) > 5)})"

    def to_coco(self, image_id: int) -> list[dict]:
        """Return records in COCO's results format, for `COCO.loadRes`: pixels with 3 decimals, scores with 6."""
        boxes_xywh = np.concatenate([self.boxes_xyxy[:, :2], self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]], axis=1)
        columns = (self.category_ids.tolist(), boxes_xywh.round(3).tolist(), self.scores.round(6).tolist())
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
            for category_id, bbox, score in zip(*columns, strict=True)
        ]

    def to_supervision(self) -> "supervision.Detections":
        """Convert to the Detections class of Roboflow's supervision. Its class_id is label - 1.

        If supervision is missing, raises ImportError with the command to install it."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError("supervision is not installed: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels - 1,
            data={"class_name": np.array(self.class_names, np.str_)},
        )
