"""Restricted statistics give pycocotools' scores of a subset of the images; intervals on slices are simultaneous."""

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from detection.coco.evaluation import evaluate_coco, summarise_evaluation
from stats.bootstrap import image_weights, resampled_scores
from stats.image_statistics import Hits, Losses
from stats.slices import assess_slices, cut, needed_replicates, restrict, widened, widening
from tests.stats.test_bootstrap import cocoeval100, random_set, statistics


def pycocotools_scores(path, results, image_ids):
    """Return mAP and AP by class of pycocotools with params.imgIds, nan where undefined."""
    evaluation = evaluate_coco(path, results)
    evaluation.params.imgIds = image_ids
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    scores = summarise_evaluation(evaluation)
    values = [scores["mAP"], *(each["AP"] for each in scores["per_class"].values())]
    return np.array(values, float)


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_on_a_slice_equals_pycocotools_on_the_same_images(tmp_path, seed, decimals):
    content, results = random_set(seed, decimals)
    matches = statistics(tmp_path, content, results)
    for share in (0.1, 0.3, 0.7):
        images = np.random.default_rng(seed).random(len(matches.image_ids)) < share
        images[seed] = True
        part = restrict(matches, images)
        scores, per_class = resampled_scores(part, np.ones((1, images.sum()), int))
        expected = pycocotools_scores(tmp_path / "annotations.json", results, matches.image_ids[images].tolist())
        np.testing.assert_allclose([*scores["mAP"], *per_class[0]], expected, rtol=0, atol=1e-12)


def test_restricted_statistics_and_zero_weights_give_the_same_scores(tmp_path, shared_data):
    matches = statistics(tmp_path, *cocoeval100(shared_data))
    images = np.arange(len(matches.image_ids)) % 3 == 0
    weights = image_weights(len(images), 20, seed=0)
    outside = resampled_scores(matches, weights * images)
    inside = resampled_scores(restrict(matches, images), weights[:, images])
    np.testing.assert_allclose(inside[0]["mAP"], outside[0]["mAP"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(inside[1], outside[1], rtol=0, atol=1e-12)


def test_slices_of_a_classifier_and_of_losses_keep_their_images():
    images, names = np.array([True, False, True]), np.array(["a", "b"])
    labels = np.array([0, 1, 1])
    hits = restrict(Hits(np.array(["x", "y", "z"]), names, labels, images, ~images), images)
    assert (hits.image_ids.tolist(), hits.labels.tolist()) == (["x", "z"], [0, 1])
    assert (hits.hits.tolist(), hits.in_top5.tolist()) == ([True, True], [False, False])
    losses = restrict(Losses(np.array("loss"), labels, names, labels, np.array([1.0, 2.0, 4.0])), images)
    assert losses.losses.tolist() == [1.0, 4.0]
    assert str(losses.name) == "loss"


@pytest.mark.parametrize(
    ("values", "num_groups", "groups"),
    [
        ([5, 1, 3, 2, 6, 4], 3, [2, 0, 1, 0, 2, 1]),
        ([1, 1, 1, 1, 2, 3], 3, [0, 0, 0, 0, 1, 1]),
        ([7, 7, 7], 3, [0, 0, 0]),
        ([1, 2, 2, 2, 2, 2, 2, 3], 2, [0, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_numbers_are_cut_into_groups_of_similar_size_and_equal_numbers_stay_together(values, num_groups, groups):
    assert cut(np.array(values), num_groups).tolist() == groups


# ---- simulated losses, whose true differences are known ----------------------------------------------------

SIZES, REPLICATES = (120, 60, 60), 2400  # images of each slice


@pytest.fixture(scope="module")
def resamples():
    """Return the slice of each image, and the share of each image in a slice's mean, [slice] (images, 1 + R)."""
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    drawn = image_weights(len(labels), REPLICATES, seed=1)
    parts = np.split(np.concatenate([np.ones_like(drawn[:1]), drawn]), np.cumsum(SIZES)[:-1], axis=1)
    return SimpleNamespace(labels=labels, shares=[(part / part.sum(axis=1, keepdims=True)).T for part in parts])


def simulated(generator, resamples, effects, cells=3, runs=3, seed_sd=0.05):
    """Return the scores of runs on each slice: [slice][cell] (runs, 1 + R), means of per-image losses.

    effects: (slices,), true difference of the last cell from the first one. seed_sd: standard deviation between runs,
    which has a part that all slices share and one that they do not."""
    labels = resamples.labels
    ease = generator.normal(0, 1, len(labels))
    scores = [[] for _ in SIZES]
    for cell in range(cells):
        noise = generator.normal(0, 1, (runs, 1 + len(SIZES))) * seed_sd
        losses = ease + generator.normal(0, 0.3, (runs, len(labels)))
        losses += noise[:, :1] + noise[:, 1:][:, labels] + (cell == cells - 1) * np.array(effects)[labels]
        for number, shares in enumerate(resamples.shares):
            scores[number].append(losses[:, labels == number] @ shares)
    return scores


DIFFERENCES = np.array([[-1, 1, 0], [-1, 0, 1]])


def test_a_difference_in_one_slice_is_found_there_and_not_elsewhere(resamples):
    found = np.zeros((len(SIZES), 2))
    for trial in range(40):
        scores = simulated(np.random.default_rng(trial), resamples, effects=(0, 0.4, 0))
        found += [[each.is_significant for each in row] for row in assess_slices(scores, SIZES, DIFFERENCES, trial)]
    assert found[1, 1] >= 35
    found[1, 1] = 0
    assert found.max() <= 3


def test_simultaneous_intervals_all_cover_in_95_percent_of_trials(resamples):
    effects, trials = np.array([0.0, 0.2, -0.1]), 500
    truth = np.stack([np.zeros(3), effects], axis=1)
    all_covered = pointwise_covered = false_alarms = 0
    for trial in range(trials):
        scores = simulated(np.random.default_rng(trial), resamples, effects)
        found = assess_slices(scores, SIZES, DIFFERENCES, trial)
        ends = np.array([[each.simultaneous for each in row] for row in found])
        errors = np.array([[each.interval.standard_error for each in row] for row in found])
        estimates = np.array([[each.interval.estimate for each in row] for row in found])
        all_covered += np.all((ends[..., 0] <= truth) & (truth <= ends[..., 1]))
        pointwise_covered += np.all(abs(estimates - truth) <= 1.96 * errors)
        false_alarms += any(row[0].is_significant for row in found)  # the second cell equals the first
    assert 0.93 <= all_covered / trials <= 0.985
    assert pointwise_covered / trials < 0.87  # so the correction is needed
    assert false_alarms / trials <= 0.06


def test_an_effect_that_is_the_same_in_all_slices_does_not_depend_on_the_slice(resamples):
    same = different = 0
    for trial in range(200):
        for effect, elsewhere in ((0.3, 0.3), (0.3, 0)):
            scores = simulated(np.random.default_rng(trial), resamples, (effect, elsewhere, elsewhere))
            change = [[one - two for one, two in zip(scores[0], scores[1], strict=True)]]
            ((_, found),) = assess_slices(change, [60], DIFFERENCES, trial)
            same += effect == elsewhere and found.is_significant
            different += effect != elsewhere and found.is_significant
    assert same <= 0.08 * 200  # 5%, and two standard errors of 200 trials
    assert different >= 0.8 * 200


def test_a_slice_without_a_score_on_most_resamples_is_no_test():
    values = np.random.default_rng(0).normal(0, 1, (2, 1, 401))
    gone = values.copy()
    gone[:, :, 1:100] = np.nan
    (first,), (second,) = assess_slices([values, gone], [50, 50], np.array([[-1, 1]]), 0)
    ((alone,),) = assess_slices([values], [50], np.array([[-1, 1]]), 0)
    assert np.isnan([second.simultaneous[0], second.p_holm]).all()
    assert first.p_holm == pytest.approx(alone.p_holm, abs=0.02)  # two tests would double it


@pytest.mark.parametrize("num_images", [10, 40])
def test_widened_resamples_of_normal_values_give_students_interval_of_the_mean(num_images):
    generator, num_tests = np.random.default_rng(0), 4
    values = generator.normal(0, 1, num_images)
    drawn = generator.normal(values.mean(), values.std() / num_images**0.5, 400_000)  # what resampled means approach
    tail = 0.05 / num_tests / 2
    ends = np.quantile(widened(drawn[None], widening(num_images, 2 * tail)), (tail, 1 - tail))
    expected = ttest_1samp(values, 0).confidence_interval(1 - 2 * tail)
    np.testing.assert_allclose(ends, expected, atol=0.01)


def test_as_many_resamples_are_needed_as_leave_ten_beyond_each_end():
    assert needed_replicates(1) == 400
    assert needed_replicates(12) == 4800
