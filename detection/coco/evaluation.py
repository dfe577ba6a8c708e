"""Run a detector on a data set and compute COCO scores: AP over IoU 0.50 to 0.95 (cocodataset.org/#detection-eval).

`detect` returns detections as COCO results. `coco_scores` scores them with pycocotools on the original annotation file.
`quick_scores` computes the same numbers with hotcoco, 50 times as fast (benchmarks/evaluation.md); training uses it
after each epoch. `image_statistics` returns the matches in each image; scores can be computed from them.
"""

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import hotcoco
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import box_convert

from data import DatasetError, batch_to, to_layout
from detection.coco.annotations import CocoFile
from detection.network.postprocess import PostprocessConfig, RawDetections, postprocess
from engine.compute.inference import evaluation_mode
from engine.compute.precision import Precision, autocast
from engine.logbook import progress_bar
from stats.image_statistics import Matches

# In the order of COCOeval.stats. Objects up to 32 ** 2 square pixels are small, up to 96 ** 2 medium, and above large.
# AR_1, AR_10, AR_100: average recall with at most 1, 10 and 100 detections per class and image.
METRICS = (
    "mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip

SCORED_FIELDS = ("image_id", "category_id", "bbox", "iscrowd", "area")  # fields of an annotation that affect scores
MAX_DETECTIONS = 100  # COCO's protocol scores at most this many detections per class and image

NO_RESULTS = np.empty((0, 7))


# ---- from a model to COCO results --------------------------------------------------------------------------


@torch.inference_mode()
def detect(
    model: nn.Module,
    loader: Iterable[dict[str, Tensor]],
    coco: CocoFile,
    *,
    device: torch.device,
    settings: Sequence[PostprocessConfig],
    precision: Precision = "fp32",
    channels_last: bool = False,
    stop_if_requested: Callable[[], None] = lambda: None,
) -> list[np.ndarray]:
    """Detect objects in every image that the loader yields, in this process only.

    model: images (B, 3, S, S) uint8 -> box_deltas, class_logits; must have anchors_cxcywh and score_function, like SSD.
    coco: the annotation file of these images, for image sizes and category ids.
    settings: one or more post-processing settings to compare; the network runs only once for all of them.
    stop_if_requested: called between batches; may raise an exception to end the run.
    precision, channels_last: precision and memory layout of the network; use those of training to get equal scores.

    Returns one array of results (see to_coco_results) per setting, sorted by image id, then highest score first.
    """
    image_sizes = {image.id: (image.width, image.height) for image in coco.images}
    found: list[list[np.ndarray]] = [[NO_RESULTS] for _ in settings]
    with evaluation_mode(model):
        for batch in progress_bar(loader, desc="scoring", unit="batch", leave=False):
            stop_if_requested()
            images = to_layout(batch_to(batch, device)["images"], channels_last)
            with autocast(device, precision):
                outputs = model(images)
            image_ids = batch["image_ids"].tolist()
            sizes = [image_sizes[image_id] for image_id in image_ids]
            for results, setting in zip(found, settings, strict=True):
                detections = postprocess(
                    *outputs, model.anchors_cxcywh, **setting.model_dump(), score_function=model.score_function
                )
                results.append(to_coco_results(detections, image_ids, sizes, coco.category_ids))
    return [sort_by_image(results) for results in found]


def to_coco_results(
    detections: Sequence[RawDetections],
    image_ids: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    category_ids: Sequence[int],
) -> np.ndarray:
    """Convert detections to COCO results, one row per detection, in pycocotools' order of columns.

    detections: one per image; boxes are fractions of the square network input, labels 1 to len(category_ids).
    image_sizes: (width, height) of the original images in pixels. The resize to a square keeps fractions unchanged.
    category_ids: index k - 1 has the category id of label k.

    Returns (N, 7) float64: image_id, x, y, width, height, score, category_id. Boxes are in pixels of the original
    image, rounded to 3 decimals; scores are rounded to 6.
    """
    if not detections:
        return NO_RESULTS
    counts = torch.tensor([len(found.scores) for found in detections])
    boxes_xyxy = torch.cat([found.boxes_xyxy for found in detections]).double().cpu()  # (N, 4)
    labels = torch.cat([found.labels for found in detections]).cpu()
    sizes = torch.tensor(image_sizes).repeat_interleave(counts, dim=0)  # (N, 2)
    boxes_xywh = box_convert(boxes_xyxy * sizes.repeat(1, 2), "xyxy", "xywh")
    columns = [
        torch.tensor(image_ids).repeat_interleave(counts).double(),
        *boxes_xywh.round(decimals=3).T,
        torch.cat([found.scores for found in detections]).double().cpu().round(decimals=6),
        torch.tensor(category_ids)[labels - 1].double(),
    ]
    return torch.stack(columns, dim=1).numpy()


def sort_by_image(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate the results (N, 7) of several batches or processes; sort by image id, then highest score first."""
    results = np.concatenate(parts)
    return results[np.lexsort((-results[:, 5], results[:, 0]))]


def as_dicts(results: np.ndarray) -> list[dict]:
    """Convert results (N, 7) to records with image_id, category_id, bbox and score, for JSON and pycocotools."""
    return [
        {"image_id": int(image_id), "category_id": int(category_id), "bbox": bbox, "score": score}
        for image_id, *bbox, score, category_id in results.tolist()
    ]


# ---- from COCO results to scores ---------------------------------------------------------------------------


class GroundTruth:
    """The ground truth that detections are scored against: an annotation file, read once into the attribute `coco`."""

    def __init__(self, path: str | Path, sha256: str | None = None, image_ids: Collection[int] | None = None) -> None:
        """Read an annotation file that detection.coco.annotations has checked.

        sha256: checksum of the checked file. image_ids: the images to score; None: all.
        Raises DatasetError naming the file if it is not JSON or has changed since it was checked."""
        self.path = Path(path)
        text = self.path.read_bytes()
        if sha256 and hashlib.sha256(text).hexdigest() != sha256:
            raise DatasetError(f"{path}: was changed after it was checked; run the command again")
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DatasetError(f"{path}: not JSON: {error}") from None
        annotations = [
            {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3]}
            | {key: annotation[key] for key in SCORED_FIELDS if key in annotation}
            for annotation in content["annotations"]
            if image_ids is None or annotation["image_id"] in image_ids
        ]
        images = [image for image in content["images"] if image_ids is None or image["id"] in image_ids]
        categories = content["categories"]
        self.coco = _index({"images": images, "annotations": annotations, "categories": categories})

    @functools.cached_property
    def hotcoco(self) -> hotcoco.COCO:
        """The records of `coco` for hotcoco, with missing fields filled in, because hotcoco has different defaults."""
        dataset = self.coco.dataset
        images = [{key: image[key] for key in ("id", "width", "height")} for image in dataset["images"]]
        return hotcoco.COCO(dataset | {"images": images})


def coco_scores(truth: GroundTruth | str | Path, results: Sequence[dict]) -> dict:
    """Compute the COCO scores of detections on all images of an annotation file.

    truth: the ground truth, or the path of an annotation file to read.
    results: one {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"} per detection.

    Returns the twelve METRICS, from 0 to 1, and "per_class": {name: {"AP", "AP50"}}. A score is None (undefined) if
    no objects have that class or size, not counting crowds.
    Raises ValueError if a result has an image id or category id that is not in the file.
    """
    return summarise_evaluation(evaluate_coco(truth, results))


def summarise_evaluation(evaluation: COCOeval) -> dict:
    """Return the same scores as coco_scores, from an evaluation returned by evaluate_coco."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    # (IoU threshold, recall, class) for objects of any size and at most 100 detections; -1 where undefined
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return {
        **{name: _mean(value) for name, value in zip(METRICS, evaluation.stats, strict=True)},
        "per_class": {
            name: {"AP": _mean(precision[:, :, k]), "AP50": _mean(precision[0, :, k])}
            for k, name in enumerate(_class_names(evaluation))
        },
    }


def quick_scores(truth: GroundTruth | str | Path, results: np.ndarray | str) -> dict[str, float | None]:
    """Return the twelve METRICS of coco_scores, computed with hotcoco.

    results: (N, 7) as from to_coco_results, or the path of a results JSON. All ids must be in the annotation file."""
    ground_truth = _read(truth).hotcoco
    evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(results), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.run()
    return {name: _mean(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}


def _read(truth: GroundTruth | str | Path) -> GroundTruth:
    return truth if isinstance(truth, GroundTruth) else GroundTruth(truth)


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the defined values, or None if all are undefined. pycocotools stores -1 for undefined."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _class_names(evaluation: COCOeval) -> list[str]:
    """Return the class names in the order of the class axis of the evaluation."""
    return [evaluation.cocoGt.cats[category_id]["name"] for category_id in evaluation.params.catIds]


def image_statistics(evaluation: COCOeval) -> Matches:
    """Return whether each detection matches an object at each IoU threshold. AP is computed from this data.

    evaluation: returned by evaluate_coco. Like AP, includes at most 100 detections per class and image."""
    image_ids, category_ids = evaluation.params.imgIds, evaluation.params.catIds
    thresholds = evaluation.params.iouThrs
    position_of_image = {image_id: position for position, image_id in enumerate(image_ids)}
    position_of_class = {category_id: position for position, category_id in enumerate(category_ids)}
    entries = matched_entries(evaluation)
    images = np.array([position_of_image[entry["image_id"]] for entry in entries], np.int32)
    classes = np.array([position_of_class[entry["category_id"]] for entry in entries], np.int16)
    detections = np.array([len(entry["dtIds"]) for entry in entries], np.int64)
    objects = np.array([np.sum(entry["gtIgnore"] == 0) for entry in entries], np.int64)

    def rows(key: str) -> np.ndarray:
        """Return (D, T) bool: whether entry[key] is nonzero, for each detection and IoU threshold."""
        nothing = np.zeros((len(thresholds), 0))
        return np.concatenate([nothing, *(entry[key] for entry in entries)], axis=1).T != 0

    ignored = rows("dtIgnore")
    return Matches(
        image_ids=np.array(image_ids, np.int64),
        class_names=np.array(_class_names(evaluation), np.str_),
        iou_thresholds=np.array(thresholds, np.float64),
        detection_images=np.repeat(images, detections),
        detection_classes=np.repeat(classes, detections),
        scores=np.array([score for entry in entries for score in entry["dtScores"]], np.float64),
        true_positives=rows("dtMatches") & ~ignored,
        ignored=ignored,
        object_images=np.repeat(images, objects),
        object_classes=np.repeat(classes, objects),
    )


def evaluate_coco(truth: GroundTruth | str | Path, results: Sequence[dict]) -> COCOeval:
    """Match detections to objects with pycocotools; return the evaluation, before `accumulate`.

    See coco_scores for arguments and errors. In `cocoGt` and `cocoDt`, annotation ids are 1, 2, ... in input order."""
    truth = _read(truth)
    ground_truth = truth.coco
    for key, known in (("image_id", ground_truth.imgs), ("category_id", ground_truth.cats)):
        unknown = {result[key] for result in results} - known.keys()
        if unknown:
            cure = "use the annotation file that these detections were made for"
            raise ValueError(f"{key} {min(unknown)} of a detection is not in {truth.path}; {cure}")

    found = [result | {"iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]} for result in results]
    evaluation = COCOeval(ground_truth, _index(ground_truth.dataset | {"annotations": found}), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return evaluation


def matched_entries(evaluation: COCOeval) -> list[dict]:
    """Return the matches for objects of any size: one entry per image and class, if it has objects or detections."""
    any_size = evaluation.params.areaRng[0]
    return [entry for entry in evaluation.evalImgs if entry and entry["aRng"] == any_size]


def _index(dataset: dict) -> COCO:
    """Return a COCO object for records in memory, with the annotations renumbered from 1.

    COCOeval uses the id 0 for "unmatched", so an annotation with id 0 would always count as missed."""
    for number, annotation in enumerate(dataset["annotations"], start=1):
        annotation["id"] = number
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
