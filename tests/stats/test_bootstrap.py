"""The bootstrap's scores equal those of a data set with copied images, and its intervals cover true differences."""

import json

import numpy as np
import pytest

from detection.coco.evaluation import coco_scores, evaluate_coco, image_statistics
from stats.bootstrap import (
    average_precision,
    image_weights,
    mean_average_precision,
    resampled_class_means,
    resampled_mean,
    resampled_scores,
)
from stats.contrasts import Interval, interval
from stats.image_statistics import Hits, Losses

CATEGORIES = [{"id": number, "name": name} for number, name in ((2, "cat"), (3, "dog"), (7, "owl"), (9, "yak"))]


# ---- annotations and detections ----------------------------------------------------------------------------


def random_set(seed, score_decimals, images=14):
    """Return annotations with crowds and a rare class, and detections that are shifted, misclassified or duplicate.

    Some objects are not detected. With 1 decimal, most scores are tied, also within an image."""
    generator = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, images + 1):
        for _ in range(generator.integers(0, 7)):
            category_id = int(generator.choice([2, 3, 7], p=[0.6, 0.3, 0.1]))
            box = np.concatenate([generator.uniform(0, 60, 2), generator.uniform(15, 40, 2)])
            crowd = int(generator.random() < 0.15)
            annotations.append(
                {"image_id": image_id, "category_id": category_id, "bbox": box.tolist(), "iscrowd": crowd}
            )
            for _ in range(generator.integers(0, 4)):
                detected = (box + generator.normal(0, 3, 4)).tolist()
                score = round(float(generator.beta(2, 2)), score_decimals)
                category_id = int(generator.choice([category_id, 2, 9], p=[0.8, 0.1, 0.1]))
                results.append({"image_id": image_id, "category_id": category_id, "bbox": detected, "score": score})
    image_records = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(1, images + 1)]
    return {"images": image_records, "categories": CATEGORIES, "annotations": annotations}, results


def cocoeval100(shared_data):
    folder = shared_data / "cocoeval100"
    content = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    return content, results


def repeat_images(content, results, weights):
    """Return a data set with weights[i] consecutive copies of image i. Images are in the order of their ids."""
    image_ids = sorted(image["id"] for image in content["images"])
    copies, number = {}, 0
    for image_id, weight in zip(image_ids, weights, strict=True):
        copies[image_id] = range(number + 1, number + 1 + weight)
        number += weight

    def repeated(records, key):
        return [record | {key: copy} for record in records for copy in copies[record[key]]]

    repeated_content = content | {
        "images": repeated(content["images"], "id"),
        "annotations": repeated(content["annotations"], "image_id"),
    }
    return repeated_content, repeated(results, "image_id")


def pycocotools_scores(tmp_path, content, results):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return coco_scores(path, results)


def statistics(tmp_path, content, results):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return image_statistics(evaluate_coco(path, results))


def assert_equals_pycocotools(tmp_path, content, results, weights):
    per_class = average_precision(statistics(tmp_path, content, results), weights)
    for row, mean, weight in zip(per_class, mean_average_precision(per_class), weights, strict=True):
        expected = pycocotools_scores(tmp_path, *repeat_images(content, results, weight))
        expected_row = [np.nan if v["AP"] is None else v["AP"] for v in expected["per_class"].values()]
        np.testing.assert_allclose(row, expected_row, rtol=0, atol=1e-12)
        np.testing.assert_allclose(mean, np.nan if expected["mAP"] is None else expected["mAP"], rtol=0, atol=1e-12)


def perturbed(results, seed, shift):
    """Move the detections randomly. shift: standard deviation, as a fraction of the box's size."""
    generator = np.random.default_rng(seed)
    moved = []
    for result in results:
        x, y, width, height = result["bbox"]
        dx, dy = shift * generator.standard_normal(2)
        moved.append(result | {"bbox": [x + dx * width, y + dy * height, width, height]})
    return moved


def compare(statistics_a, statistics_b, weights):
    """Return the interval of the mAP of b minus the mAP of a."""
    ones = np.ones((1, weights.shape[1]), dtype=int)
    scores = [
        mean_average_precision(np.concatenate([average_precision(m, ones), average_precision(m, weights)]))
        for m in (statistics_a, statistics_b)
    ]
    difference = scores[1] - scores[0]
    return interval(difference[0], difference[1:])


# ---- scores on resamples -----------------------------------------------------------------------------------


def test_resamples_have_as_many_images_as_the_set_and_depend_only_on_the_seed():
    weights = image_weights(50, 20, seed=3)
    assert weights.shape == (20, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.max() > 1
    np.testing.assert_array_equal(weights, image_weights(50, 20, seed=3))
    assert (weights != image_weights(50, 20, seed=4)).any()


@pytest.mark.parametrize("score_decimals", [6, 1, 0], ids=["few ties", "many ties", "all tied"])
@pytest.mark.parametrize("seed", range(4))
def test_resampled_ap_equals_pycocotools_on_copied_images(tmp_path, seed, score_decimals):
    content, results = random_set(seed, score_decimals)
    weights = np.concatenate([np.ones((1, 14), dtype=int), image_weights(14, 5, seed)])
    assert_equals_pycocotools(tmp_path, content, results, weights)


def test_resampled_ap_of_real_detections_equals_pycocotools_on_copied_images(tmp_path, shared_data):
    content, results = cocoeval100(shared_data)
    weights = image_weights(len(content["images"]), 3, seed=1)
    assert_equals_pycocotools(tmp_path, content, results, weights)


def test_undetected_class_scores_zero_and_resample_without_objects_is_nan(tmp_path):
    content, results = random_set(0, score_decimals=6)
    results = [result for result in results if result["category_id"] != 2]
    matches = statistics(tmp_path, content, results)
    full, empty = average_precision(matches, np.array([[1] * 14, [0] * 14]))
    assert full[0] == 0.0
    assert np.isnan(empty).all()
    assert np.isnan(mean_average_precision(empty[None])).all()


@pytest.mark.parametrize("score_decimals", [6, 1], ids=["few ties", "many ties"])
def test_ap_does_not_depend_on_the_number_of_resamples_per_chunk(tmp_path, monkeypatch, score_decimals):
    matches, weights = statistics(tmp_path, *random_set(1, score_decimals)), image_weights(14, 7, seed=0)
    expected = average_precision(matches, weights)
    monkeypatch.setattr("stats.bootstrap.RESAMPLES_PER_CHUNK", 3)
    np.testing.assert_array_equal(average_precision(matches, weights), expected)


def test_counts_larger_than_16_bits_do_not_overflow(tmp_path):
    """Without ties, precision and recall stay the same if every image is drawn 4,000 times as often."""
    matches, weights = statistics(tmp_path, *random_set(1, score_decimals=9)), image_weights(14, 7, seed=0)
    assert np.bincount(matches.object_classes).max() * 4000 > 2**16
    np.testing.assert_allclose(
        average_precision(matches, 4000 * weights.astype(int)), average_precision(matches, weights), rtol=0, atol=1e-12
    )


def test_ap_counts_recall_thresholds_like_pycocotools_for_any_number_of_objects(tmp_path):
    """Detect the first m of n objects of one class, with one object per image, for thresholds such as 0.35 = 7 / 20."""
    for detected, objects in ((7, 20), (41, 100), (57, 100), (7, 10), (35, 100), (1, 3), (19, 20), (20, 20)):
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in range(1, objects + 1)]
        boxes = [{"image_id": i, "category_id": 2, "bbox": [0, 0, 5, 5]} for i in range(1, objects + 1)]
        content = {"images": images, "categories": CATEGORIES, "annotations": [box | {"iscrowd": 0} for box in boxes]}
        results = [box | {"score": 1 / (1 + box["image_id"])} for box in boxes[:detected]]
        assert_equals_pycocotools(tmp_path, content, results, np.ones((1, objects), dtype=int))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, 13), dtype=int), r"\(2, 13\).*\(replicates, 14\)"),
        (np.ones((2, 14)), "float64"),
    ],
)
def test_invalid_image_weights_are_an_error(tmp_path, weights, message):
    matches = statistics(tmp_path, *random_set(0, score_decimals=1))
    with pytest.raises(ValueError, match=message):
        average_precision(matches, weights)


# ---- accuracy ----------------------------------------------------------------------------------------------


def random_hits(seed, images=40, classes=4, top1=0.6):
    """Return random hits of a classifier. The last class has no image."""
    generator = np.random.default_rng(seed)
    hits = generator.random(images) < top1
    return Hits(
        image_ids=np.array([f"{number}.jpg" for number in range(images)]),
        class_names=np.array([f"class {number}" for number in range(classes)]),
        labels=generator.integers(0, classes - 1, images).astype(np.int16),
        hits=hits,
        in_top5=hits | (generator.random(images) < 0.7),
    )


@pytest.mark.parametrize("seed", range(3))
def test_resampled_accuracy_equals_accuracy_on_copied_images(seed):
    hits, weights = random_hits(seed), image_weights(40, 6, seed)
    scores, by_class = resampled_scores(hits, weights)
    for row, weight in enumerate(weights):
        repeated = np.repeat(np.arange(40), weight)
        assert scores["top1"][row] == np.mean(hits.hits[repeated])
        assert scores["top5"][row] == np.mean(hits.in_top5[repeated])
        for label in range(3):
            of_class = [hits.hits[image] for image in repeated if hits.labels[image] == label]
            assert by_class[row, label] == np.mean(of_class)


@pytest.mark.parametrize("seed", range(2))
def test_resampled_loss_equals_mean_loss_on_copied_images(seed):
    labels, values = np.arange(40) % 2, np.random.default_rng(seed).random(40)
    losses = Losses(np.array("val_loss"), np.arange(40).astype(str), np.array(["cat", "dog"]), labels, values)
    weights = image_weights(40, 5, seed)
    scores, by_class = resampled_scores(losses, weights)
    for row, weight in enumerate(weights):
        repeated = np.repeat(np.arange(40), weight)
        assert scores["val_loss"][row] == pytest.approx(values[repeated].mean())
        assert by_class[row, 1] == pytest.approx(values[repeated[labels[repeated] == 1]].mean())


def test_intervals_of_a_difference_in_accuracy_cover_the_truth_in_about_95_percent_of_trials():
    """Compare two classifiers of 70% and 62% accuracy, often correct on the same images, on 600 validation sets."""
    generator, covered = np.random.default_rng(0), []
    for trial in range(600):
        ease = generator.random(150)
        a, b = (np.where(generator.random(150) < 0.6, ease, generator.random(150)) < top1 for top1 in (0.7, 0.62))
        weights = np.concatenate([np.ones((1, 150), int), image_weights(150, 300, seed=trial)])
        difference = resampled_mean(a, weights) - resampled_mean(b, weights)
        result = interval(difference[0], difference[1:])
        covered.append(result.low <= 0.08 <= result.high)
    assert 0.92 < np.mean(covered) < 0.97


def test_accuracy_of_more_resamples_than_fit_in_a_chunk():
    hits, weights = random_hits(0), image_weights(40, 150, seed=0)
    top1, by_class = resampled_mean(hits.hits, weights), resampled_class_means(hits.hits, hits, weights)
    for row in (0, 63, 64, 149):
        np.testing.assert_array_equal(resampled_mean(hits.hits, weights[[row]]), top1[[row]])
        np.testing.assert_array_equal(resampled_class_means(hits.hits, hits, weights[[row]]), by_class[[row]])


def test_accuracy_without_images_is_nan():
    hits = random_hits(0)
    weights = np.array([hits.labels != 1], dtype=int)
    assert np.isnan(resampled_class_means(hits.hits, hits, weights)).tolist() == [[False, True, False, True]]
    assert np.isnan(resampled_mean(np.array([True, False]), np.zeros((1, 2), int))).all()


# ---- differences of real detections ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_pair(shared_data, tmp_path_factory):
    """Return statistics of real detections, and of the same detections moved by about a tenth of the box size."""
    folder = tmp_path_factory.mktemp("pair")
    content, results = cocoeval100(shared_data)
    return statistics(folder, content, results), statistics(folder, content, perturbed(results, seed=0, shift=0.1))


def test_difference_of_identical_detections_is_exactly_zero(real_pair):
    result = compare(real_pair[0], real_pair[0], image_weights(len(real_pair[0].image_ids), 100, seed=0))
    assert result == Interval(0.0, 0.0, 0.0, 1.0, 0.0)


def test_clearly_worse_detections_are_significantly_worse(real_pair):
    result = compare(*real_pair, image_weights(len(real_pair[0].image_ids), 400, seed=0))
    assert result.high < 0
    assert result.p < 0.01


def test_pairing_makes_the_interval_narrower(real_pair):
    images = len(real_pair[0].image_ids)
    a, b, b_unpaired = (
        mean_average_precision(average_precision(m, image_weights(images, 400, seed)))
        for m, seed in ((real_pair[0], 0), (real_pair[1], 0), (real_pair[1], 1))
    )
    assert np.std(b - a) < 0.8 * np.std(b_unpaired - a)
