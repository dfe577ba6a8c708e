"""detection/coco/evaluation.py: detections in the terms of the annotation file, and scores equal to pycocotools'."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from detection.coco.annotations import ImageRecord
from detection.coco.evaluation import (
    METRICS,
    as_dicts,
    coco_scores,
    detect,
    evaluate_coco,
    image_statistics,
    quick_scores,
)
from detection.network.postprocess import PostprocessConfig

CPU = torch.device("cpu")

PUBLISHED_NAMES = {
    "AP": "mAP", "AP50": "AP50", "AP75": "AP75", "APs": "AP_small", "APm": "AP_medium", "APl": "AP_large",
    "AR1": "AR_1", "AR10": "AR_10", "AR100": "AR_100", "ARs": "AR_small", "ARm": "AR_medium", "ARl": "AR_large",
}  # fmt: skip


# ---- scores ------------------------------------------------------------------------------------------------


def write_annotations(path, annotations, categories=((1, "cat"), (7, "dog"))):
    """Write an annotation file of images 5 and 9. annotations: (image_id, category_id, bbox, other fields)."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height}
            for i, width, height in ((5, 640, 480), (9, 100, 50))
        ],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box} | further
            for number, (image_id, category_id, box, further) in enumerate(annotations, start=1)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def perfect_results(annotations_path):
    annotations = json.loads(annotations_path.read_text())["annotations"]
    return [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in annotations
        if not a.get("iscrowd")
    ]


@pytest.fixture
def two_objects(tmp_path):
    return write_annotations(tmp_path / "two.json", [(5, 1, [10, 10, 50, 40], {}), (9, 7, [20, 5, 60, 40], {})])


def as_array(results):
    return np.array([[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in results]).reshape(-1, 7)


def random_case(path, seed):
    """Draw objects and detections near them in two images, with crowds, tied scores and missing fields."""
    rng = np.random.default_rng(seed)
    objects, results = [], []
    for _ in range(int(rng.integers(0, 60))):
        image_id, category_id = int(rng.choice([5, 9])), int(rng.choice([1, 7]))
        box = [round(float(value), 2) for value in rng.uniform((0, 0, 5, 5), (60, 60, 140, 140))]
        further = {} if rng.random() < 0.3 else {"iscrowd": int(rng.random() < 0.2), "area": float(rng.uniform(1, 2e4))}
        if rng.random() < 0.8:
            objects.append((image_id, category_id, box, further))
        if rng.random() < 0.8:
            shifted = [round(max(value + float(rng.normal(0, 3)), 0), 3) for value in box]
            score = round(float(rng.random()), 1)  # many ties
            results.append({"image_id": image_id, "category_id": category_id, "bbox": shifted, "score": score})
    return write_annotations(path, objects), results


def average_precision(matches, class_position):
    """Compute the AP of a class from its matches, in plain loops; None if it has no objects."""
    num_objects = int((matches.object_classes == class_position).sum())
    if num_objects == 0:
        return None
    rows = np.flatnonzero(matches.detection_classes == class_position)
    rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
    precisions = []
    for t in range(len(matches.iou_thresholds)):
        curve, found, wrong = [], 0, 0
        for row in rows:
            if matches.ignored[row, t]:
                continue
            found, wrong = found + matches.true_positives[row, t], wrong + (not matches.true_positives[row, t])
            curve.append((found / num_objects, found / (found + wrong)))
        for recall in np.linspace(0, 1, 101):
            precisions.append(max((precision for reached, precision in curve if reached >= recall), default=0.0))
    return np.mean(precisions)


def assert_all_agree(annotations_path, results):
    """Assert that hotcoco's scores and the AP from image_statistics equal pycocotools' scores; return these."""
    scores = coco_scores(annotations_path, results)
    expected = {name: None if scores[name] is None else pytest.approx(scores[name], abs=1e-12) for name in METRICS}
    assert quick_scores(annotations_path, as_array(results)) == expected
    matches = image_statistics(evaluate_coco(annotations_path, results))
    assert matches.class_names.tolist() == list(scores["per_class"])
    for position, name in enumerate(matches.class_names):
        expected = scores["per_class"][name]["AP"]
        assert average_precision(matches, position) == (expected and pytest.approx(expected, abs=1e-12))
    return scores


def test_scores_of_the_coco_sample_equal_the_published_scores(shared_data):
    folder = shared_data / "cocoeval100"
    published = json.loads((folder / "expected_bbox.json").read_text())
    path, annotations_path = (
        folder / "instances_val2014_fakebbox100_results.json",
        folder / "instances_val2014_100.json",
    )
    results = json.loads(path.read_text())
    scores = assert_all_agree(annotations_path, results)
    assert {PUBLISHED_NAMES[name]: score for name, score in published.items()} == {
        name: round(scores[name], 3) for name in METRICS
    }
    assert quick_scores(annotations_path, str(path)) == quick_scores(annotations_path, as_array(results))
    for overall, metric in (("mAP", "AP"), ("AP50", "AP50")):
        defined = [value[metric] for value in scores["per_class"].values() if value[metric] is not None]
        assert sum(defined) / len(defined) == pytest.approx(scores[overall], abs=1e-12)
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize("seed", range(20))
def test_scores_agree_among_crowds_ties_missing_fields_and_empty_images(tmp_path, seed):
    assert_all_agree(*random_case(tmp_path / "random.json", seed))


def test_scores_agree_with_more_than_a_hundred_detections_in_an_image(two_objects):
    rng = np.random.default_rng(0)
    boxes = [[10.0 + float(shift), 10, 50, 40] for shift in rng.normal(size=250)]
    assert_all_agree(
        two_objects, [{"image_id": 5, "category_id": 1, "bbox": box, "score": float(rng.random())} for box in boxes]
    )


def test_scores_are_zero_without_detections(two_objects):
    scores = assert_all_agree(two_objects, [])
    assert scores["mAP"] == 0.0
    assert scores["per_class"] == {"cat": {"AP": 0.0, "AP50": 0.0}, "dog": {"AP": 0.0, "AP50": 0.0}}


@pytest.mark.parametrize("annotations", [[], [(5, 1, [10, 10, 50, 40], {"iscrowd": 1})]], ids=["none", "only crowds"])
def test_without_ground_truth_every_score_is_undefined(tmp_path, annotations):
    path = write_annotations(tmp_path / "empty.json", annotations)
    found = [{"image_id": 5, "category_id": 1, "bbox": [300, 300, 50, 40], "score": 0.9}]
    for results in ([], found):
        scores = assert_all_agree(path, results)
        assert {scores[name] for name in METRICS} == {None}
        assert scores["per_class"]["cat"] == {"AP": None, "AP50": None}


def test_a_class_without_objects_is_undefined_and_not_in_the_mean(tmp_path):
    path = write_annotations(tmp_path / "cats.json", [(5, 1, [10, 10, 50, 40], {})])
    scores = coco_scores(path, perfect_results(path))
    assert scores["per_class"]["dog"] == {"AP": None, "AP50": None}
    assert scores["mAP"] == pytest.approx(1.0)


def test_iscrowd_defaults_to_0_and_area_to_the_area_of_the_box(tmp_path):
    objects = [(5, 1, [10, 10, 50, 40]), (5, 1, [100, 10, 20, 20]), (9, 7, [0, 0, 100, 50])]
    bare = write_annotations(tmp_path / "bare.json", [(*o, {}) for o in objects])
    full = write_annotations(tmp_path / "full.json", [(*o, {"iscrowd": 0, "area": o[2][2] * o[2][3]}) for o in objects])
    results = perfect_results(bare)[:2]
    assert coco_scores(bare, results) == coco_scores(full, results)


def test_an_annotation_with_id_zero_is_found(two_objects):
    """Regression test: for pycocotools, a match with id 0 means unmatched."""
    content = json.loads(two_objects.read_text())
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    two_objects.write_text(json.dumps(content))
    assert coco_scores(two_objects, perfect_results(two_objects))["mAP"] == pytest.approx(1.0)


def test_object_size_is_the_area_in_the_file_not_that_of_the_box(tmp_path):
    path = write_annotations(tmp_path / "thin.json", [(5, 1, [10, 10, 200, 200], {"area": 100})])
    scores = coco_scores(path, perfect_results(path))
    assert scores["AP_small"] == pytest.approx(1.0)
    assert scores["AP_large"] is None


@pytest.mark.parametrize("foreign", [{"image_id": 6}, {"category_id": 2}])
def test_results_with_unknown_ids_are_rejected(two_objects, foreign):
    result = perfect_results(two_objects)[0] | foreign
    [(key, value)] = foreign.items()
    with pytest.raises(ValueError, match=f"{key} {value} .*two.json"):
        coco_scores(two_objects, [result])


# ---- statistics per image ----------------------------------------------------------------------------------


def test_detections_are_ordered_by_class_then_image_then_score(two_objects):
    box = [10, 10, 50, 40]
    results = [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for image_id, category_id, score in ((9, 1, 0.9), (5, 7, 0.2), (5, 1, 0.3), (5, 1, 0.6))
    ]
    matches = image_statistics(evaluate_coco(two_objects, results))
    assert matches.image_ids.tolist() == [5, 9]
    assert matches.detection_classes.tolist() == [0, 0, 0, 1]
    assert matches.detection_images.tolist() == [0, 0, 1, 0]
    assert matches.scores.tolist() == [0.6, 0.3, 0.9, 0.2]


def test_a_file_that_changed_is_read_again(two_objects):
    results = perfect_results(two_objects)
    assert quick_scores(two_objects, as_array(results))["mAP"] == pytest.approx(1)
    write_annotations(two_objects, [(5, 1, [10, 10, 50, 40], {}), (9, 7, [60, 5, 30, 40], {})])
    assert coco_scores(two_objects, results)["mAP"] == pytest.approx(0.5)
    assert quick_scores(two_objects, as_array(results))["mAP"] == pytest.approx(0.5)


# ---- detections --------------------------------------------------------------------------------------------


class TwoAnchors(nn.Module):
    """Detect label 1 at the left anchor and, with a lower score, label 2 at the right anchor, in every image."""

    def __init__(self):
        super().__init__()
        self.register_buffer("anchors_cxcywh", torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 0.5]]))
        self.frozen = nn.BatchNorm2d(3).eval()
        self.calls, self.score_function = 0, "softmax"

    def forward(self, images):
        assert not self.training
        assert images.dtype == torch.uint8
        self.calls += 1
        logits = torch.tensor([[0.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
        return torch.zeros(len(images), 2, 4), logits.expand(len(images), 2, 3)


COCO_FILE = SimpleNamespace(
    images=[ImageRecord(9, "9.jpg", 100, 50), ImageRecord(5, "5.jpg", 640, 480)], category_ids=[1, 7]
)


def loader(*image_ids):
    """Return one batch per image id."""
    return [{"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "image_ids": torch.tensor([i])} for i in image_ids]


def test_detect_scales_boxes_to_each_image_and_sorts_by_image_then_score():
    [results] = detect(
        TwoAnchors(), loader(9, 5), COCO_FILE, device=CPU, settings=[PostprocessConfig(score_threshold=0.3)]
    )
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in as_dicts(results)] == [
        (5, 1, [0.0, 0.0, 320.0, 480.0]),
        (5, 7, [320.0, 120.0, 320.0, 240.0]),
        (9, 1, [0.0, 0.0, 50.0, 50.0]),
        (9, 7, [50.0, 12.5, 50.0, 25.0]),
    ]


def test_the_network_runs_once_for_several_thresholds():
    model = TwoAnchors().train()
    model.frozen.eval()
    settings = [PostprocessConfig(score_threshold=threshold) for threshold in (0.3, 0.9)]
    loose, tight = detect(model, loader(5), COCO_FILE, device=CPU, settings=settings)
    assert model.calls == 1
    assert model.training
    assert not model.frozen.training
    assert loose[:, 6].tolist() == [1, 7]
    assert tight[:, 6].tolist() == [1]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_the_network_runs_in_the_given_precision(precision, dtype):
    class Convolution(TwoAnchors):
        def forward(self, images):
            self.dtype = nn.functional.conv2d(images.float(), torch.zeros(1, 3, 1, 1)).dtype
            return super().forward(images)

    model = Convolution()
    detect(model, loader(5), COCO_FILE, device=CPU, settings=[PostprocessConfig()], precision=precision)
    assert model.dtype == dtype
