"""Statistics are loaded as they were saved, or the error says why they cannot be."""

from dataclasses import fields, replace

import numpy as np
import pytest

from stats.bootstrap import average_precision, image_weights
from stats.image_statistics import FILE_NAME, Hits, Matches, compact, load_statistics

MATCHES = Matches(
    image_ids=np.array([5, 9], np.int64),
    class_names=np.array(["cat", "Hündin"]),
    iou_thresholds=np.array([0.5, 0.75]),
    detection_images=np.array([0, 1, 1], np.int32),
    detection_classes=np.array([0, 0, 1], np.int16),
    scores=np.array([0.9, 0.8, 0.1]),
    true_positives=np.array([[True, False], [False, False], [True, True]]),
    ignored=np.array([[False, False], [True, True], [False, False]]),
    object_images=np.array([0, 1], np.int32),
    object_classes=np.array([0, 1], np.int16),
)
HITS = Hits(
    image_ids=np.array(["cat/1.jpg", "Hündin/1.jpg", "Hündin/2.jpg"]),
    class_names=np.array(["cat", "Hündin"]),
    labels=np.array([0, 1, 1], np.int16),
    hits=np.array([True, False, True]),
    in_top5=np.array([True, True, True]),
)
both = pytest.mark.parametrize("statistics", [MATCHES, HITS], ids=["matches", "hits"])


@both
def test_loaded_statistics_equal_saved_ones(tmp_path, statistics):
    statistics.save(tmp_path)
    statistics.save(tmp_path)  # overwrites the first file
    loaded = load_statistics(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert type(loaded) is type(statistics)
    for field in fields(statistics):
        expected, array = getattr(statistics, field.name), getattr(loaded, field.name)
        assert expected.dtype == array.dtype
        assert np.array_equal(expected, array)


@pytest.mark.parametrize("keep", [0, 20, -40])
@both
def test_error_about_a_corrupt_file_names_it(tmp_path, statistics, keep):
    statistics.save(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"image_statistics\.npz"):
        load_statistics(tmp_path)


def test_unexpected_arrays_are_an_error(tmp_path):
    np.savez(tmp_path / FILE_NAME, scores=np.zeros(3))
    with pytest.raises(ValueError, match=r"image_statistics\.npz.*scores"):
        load_statistics(tmp_path)


def test_compact_matches_have_the_same_average_precision_on_every_resample():
    draw = np.random.default_rng(0)
    count, images = 400, 20
    classes = np.sort(draw.integers(0, 2, count)).astype(np.int16)
    scores = draw.random(count).round(2)  # with ties
    right = (draw.random((count, 2)) < scores[:, None] - 0.3) & [True, False]  # low scores are always wrong
    matches = Matches(
        np.arange(images), np.array(["cat", "dog"]), np.array([0.5, 0.75]),
        draw.integers(0, images, count).astype(np.int32), classes, scores, right,
        ~right & (draw.random((count, 2)) < 0.02) & (scores[:, None] > 0.2),
        np.repeat(np.arange(images), 40).astype(np.int32), np.tile(np.arange(2), 20 * images).astype(np.int16),
    )  # fmt: skip
    small, weights = compact(matches), image_weights(images, 200, 0)
    assert len(small.scores) < 0.9 * count
    np.testing.assert_array_equal(average_precision(small, weights), average_precision(matches, weights))
    nothing = compact(replace(matches, true_positives=right & False, ignored=right & False))
    assert len(nothing.scores) == 0
    assert (average_precision(nothing, weights) == 0).all()
