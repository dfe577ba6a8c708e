"""Statistics are loaded as they were saved, or the error says why they cannot be."""

from dataclasses import fields

import numpy as np
import pytest

from stats.image_statistics import FILE_NAME, Hits, Matches, load_statistics

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
