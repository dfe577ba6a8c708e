"""Detections of a data set, and their COCO scores: AP over IoU 0.50 to 0.95 (cocodataset.org/#detection-eval).

`detect` writes what a model finds as COCO results. `coco_scores` compares these with the untouched annotation file by
pycocotools; `quick_scores` gets the same numbers by hotcoco in a fiftieth of the time (benchmarks/evaluation.md), after
each epoch of training. `image_statistics` keeps what the score was computed from, image by image.
"""

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import hotcoco
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import box_convert

from data import DatasetError, batch_to, normalize_images
from detection.coco.annotations import CocoFile
from detection.network.postprocess import PostprocessConfig, RawDetections, postprocess
from engine.compute.inference import evaluation_mode
from engine.compute.precision import Precision, autocast
from engine.logbook import progress_bar
from stats.image_statistics import Matches

# In the order of COCOeval.stats. AP_* and AR_small.. by the area of the object in pixels: below 32 ** 2, to 96 ** 2,
# above; AR_1.. by the number of detections allowed per image.
METRICS = (
    "mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


SCORED = ("image_id", "category_id", "bbox", "iscrowd", "area")  # fields of an annotation
MOST_DETECTIONS = 100  # of a class in an image that COCO's protocol looks at, however many are reported

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
    stop_if_asked: Callable[[], None] = lambda: None,
) -> list[np.ndarray]:
    """Find the objects in every image that the loader yields, on this process alone.

    model: (B, 3, S, S) normalised images -> box_deltas, class_logits; with the buffer anchors_cxcywh, as SSD has.
    coco: the annotation file of these images, for their sizes and the categories' ids.
    settings: the network runs once, however many thresholds are to be compared.
    stop_if_asked: called between batches; raises if the run is to end.
    precision, channels_last: arithmetic and memory layout of the network, those of training for equal numbers.

    Returns for each of the settings its results (see to_coco_results) by image id, best first within an image.
    """
    image_sizes = {image.id: (image.width, image.height) for image in coco.images}
    found: list[list[np.ndarray]] = [[NO_RESULTS] for _ in settings]
    with evaluation_mode(model):
        for batch in progress_bar(loader, desc="scoring", unit="batch", leave=False):
            stop_if_asked()
            images = normalize_images(batch_to(batch, device)["images"], channels_last)
            with autocast(device, precision):
                outputs = model(images)
            image_ids = batch["image_ids"].tolist()
            sizes = [image_sizes[image_id] for image_id in image_ids]
            for results, setting in zip(found, settings, strict=True):
                detections = postprocess(*outputs, model.anchors_cxcywh, **setting.model_dump())
                results.append(to_coco_results(detections, image_ids, sizes, coco.category_ids))
    return [by_image(results) for results in found]


def to_coco_results(
    detections: Sequence[RawDetections],
    image_ids: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    category_ids: Sequence[int],
) -> np.ndarray:
    """Write detections as COCO results, image after image: a row each, in pycocotools' order of columns.

    detections: one per image, boxes as fractions of the network's square input, labels 1 to len(category_ids).
    image_sizes: (width, height) of the original images in pixels; fractions survive the resize to a square.
    category_ids: of label k at k - 1.

    Returns (N, 7) float64: image_id, x, y, width, height, score, category_id. The box is in pixels of the original, to
    3 decimals; scores have 6.
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


def by_image(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return results (N, 7) of several batches or processes, sorted by image id, then best first."""
    results = np.concatenate(parts)
    return results[np.lexsort((-results[:, 5], results[:, 0]))]


def as_dicts(results: np.ndarray) -> list[dict]:
    """Return results (N, 7) as records for JSON and pycocotools: image_id, category_id, bbox, score."""
    return [
        {"image_id": int(image_id), "category_id": int(category_id), "bbox": bbox, "score": score}
        for image_id, *bbox, score, category_id in results.tolist()
    ]


# ---- from COCO results to scores ---------------------------------------------------------------------------


class GroundTruth:
    """An annotation file as it was when it was read, in `coco`: detections are scored against this."""

    def __init__(self, path: str | Path, sha256: str | None = None) -> None:
        """path: an annotation file that detection.coco.annotations has checked. sha256: of what was checked.

        Raises DatasetError naming the file if it is not JSON or has changed since it was checked."""
        self.path = Path(path)
        text = self.path.read_bytes()
        if sha256 and hashlib.sha256(text).hexdigest() != sha256:
            raise DatasetError(f"{path}: was changed after it was checked; start again")
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DatasetError(f"{path}: not JSON: {error}") from None
        annotations = [
            {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3]}
            | {key: annotation[key] for key in SCORED if key in annotation}
            for annotation in content["annotations"]
        ]
        lists = {name: content[name] for name in ("images", "categories")}
        self.coco = _index(lists | {"annotations": annotations})

    @functools.cached_property
    def hotcoco(self) -> hotcoco.COCO:
        """The same records as pycocotools gets: hotcoco interprets missing fields differently."""
        dataset = self.coco.dataset
        images = [{key: image[key] for key in ("id", "width", "height")} for image in dataset["images"]]
        return hotcoco.COCO(dataset | {"images": images})


def coco_scores(truth: GroundTruth | str | Path, results: Sequence[dict]) -> dict:
    """Score detections by COCO's protocol on every image of an annotation file.

    truth: the ground truth; a path is read now.
    results: {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"} each, for the whole file.

    Returns the twelve METRICS, from 0 to 1, and "per_class": {name: {"AP", "AP50"}}. A score is None if it is
    undefined: no object of that class or size, crowds aside.
    Raises ValueError if a result names an image or category that the file does not have.
    """
    return summary_of(evaluate_coco(truth, results))


def summary_of(evaluation: COCOeval) -> dict:
    """Return the scores of coco_scores for an evaluation of evaluate_coco."""
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
    """Return the twelve METRICS of coco_scores, computed by hotcoco.

    results: (N, 7) as from to_coco_results, of images and classes that the file has; or the path of a results JSON."""
    ground_truth = _read(truth).hotcoco
    evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(results), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.run()
    return {name: _mean(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}


def _read(truth: GroundTruth | str | Path) -> GroundTruth:
    return truth if isinstance(truth, GroundTruth) else GroundTruth(truth)


def _mean(values: np.ndarray) -> float | None:
    """Mean of what is defined, as pycocotools marks it; None if nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _class_names(evaluation: COCOeval) -> list[str]:
    """In the order in which the evaluator goes through the classes: that of their ids."""
    return [evaluation.cocoGt.cats[category_id]["name"] for category_id in evaluation.params.catIds]


def image_statistics(evaluation: COCOeval) -> Matches:
    """Return which detection found an object at which IoU: AP over objects of any size is computed from this.

    evaluation: of evaluate_coco. At most 100 detections per image and class, as in AP."""
    image_ids, category_ids = evaluation.params.imgIds, evaluation.params.catIds
    thresholds = evaluation.params.iouThrs
    position_of_image = {image_id: position for position, image_id in enumerate(image_ids)}
    position_of_class = {category_id: position for position, category_id in enumerate(category_ids)}
    entries = matched(evaluation)
    images = np.array([position_of_image[entry["image_id"]] for entry in entries], np.int32)
    classes = np.array([position_of_class[entry["category_id"]] for entry in entries], np.int16)
    detections = np.array([len(entry["dtIds"]) for entry in entries], np.int64)
    objects = np.array([np.sum(entry["gtIgnore"] == 0) for entry in entries], np.int64)

    def rows(key: str) -> np.ndarray:
        """Of the (T, n) arrays of all entries, (D, T) of whether they are not 0."""
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
    """Return pycocotools' evaluation of results, matched but not accumulated; arguments and errors as in coco_scores.

    Ground truth and detections, `cocoGt` and `cocoDt`, are numbered from 1, the latter in the order of `results`."""
    truth = _read(truth)
    ground_truth = truth.coco
    for key, known in (("image_id", ground_truth.imgs), ("category_id", ground_truth.cats)):
        unknown = {result[key] for result in results} - known.keys()
        if unknown:
            raise ValueError(f"{key} {min(unknown)}: detected, but not in {truth.path}; are these its detections?")

    found = [result | {"iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]} for result in results]
    evaluation = COCOeval(ground_truth, _index(ground_truth.dataset | {"annotations": found}), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return evaluation


def matched(evaluation: COCOeval) -> list[dict]:
    """Return the matches of evaluate_coco for objects of any size: class by class, an entry for each image that has
    objects or detections of it."""
    any_size = evaluation.params.areaRng[0]
    return [entry for entry in evaluation.evalImgs if entry and entry["aRng"] == any_size]


def _index(dataset: dict) -> COCO:
    """Return a COCO object of records in memory, its annotations numbered from 1.

    COCOeval marks an unmatched detection by the id 0, so an annotation 0 would never be found."""
    for number, annotation in enumerate(dataset["annotations"], start=1):
        annotation["id"] = number
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
