"""Differences between models on slices: subsets of the validation images, such as the images that were taken at night.

The score of a slice is the score of its images only. Slices are compared on the same resamples of the whole validation
set, so that the number of images of a slice varies between resamples, as it would between validation sets.

A comparison on many slices tests many differences, which are corrected as one family (stats/contrasts.py).

Slices are small, and resamples of n images vary less than samples of n new images. The replicates are therefore widened
as in the expanded percentile interval (Hesterberg, 2015, arXiv 1411.5279). benchmarks/slices.md measures the coverage.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from stats.contrasts import LEVEL, Tested, assess_family
from stats.image_statistics import Matches, Statistics
from stats.replicates import cell_replicates

FEW_IMAGES = 30  # the intervals of a smaller slice are unreliable
MIN_TAIL = 10  # resamples beyond each end of a corrected interval; with fewer, the ends depend on the draw
PER_IMAGE = ("image_ids", "labels", "hits", "in_top5", "losses")  # arrays of Hits and Losses with a value per image


def restrict(statistics: Statistics, images: np.ndarray) -> Statistics:
    """Return the statistics of a subset of the images, in the same order.

    Average precision of the result is the same as pycocotools computes with `params.imgIds` set to these images.
    images: (I,) bool, whether to keep each image."""
    if not isinstance(statistics, Matches):
        kept = [name for name in PER_IMAGE if hasattr(statistics, name)]
        return replace(statistics, **{name: getattr(statistics, name)[images] for name in kept})
    position = (np.cumsum(images) - 1).astype(np.int32)  # of each kept image in the result
    detections, objects = images[statistics.detection_images], images[statistics.object_images]
    return replace(
        statistics,
        image_ids=statistics.image_ids[images],
        detection_images=position[statistics.detection_images[detections]],
        detection_classes=statistics.detection_classes[detections],
        scores=statistics.scores[detections],
        true_positives=statistics.true_positives[detections],
        ignored=statistics.ignored[detections],
        object_images=position[statistics.object_images[objects]],
        object_classes=statistics.object_classes[objects],
    )


def cut(values: np.ndarray, num_groups: int) -> np.ndarray:
    """Cut numbers into groups of about equal size, from low to high. Equal numbers are in the same group.

    values: (N,). Returns (N,) int, the group of each number: 0, 1, ... There may be fewer groups than num_groups."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2  # rank of the middle of each run of equal numbers
    groups = np.minimum(num_groups * middle / len(values), num_groups - 1).astype(int)
    return np.unique(groups, return_inverse=True)[1][inverse]


def assess_slices(
    scores: Sequence[Sequence[np.ndarray]],
    num_images: Sequence[int],
    contrasts: np.ndarray,
    seed: int,
    level: float = LEVEL,
    luck: np.ndarray | None = None,
    **options: Any,
) -> list[list[Tested]]:
    """Test the same contrasts of K cells on each slice, as one family.

    scores: for each slice and each cell, (n_k, 1 + R): the scores of the cell's n_k runs on the slice's images and on R
    resamples. To test whether a difference depends on the slice, use the score on the slice minus that on the rest.
    num_images: of each slice; with the rest, the smaller of the two numbers.
    contrasts: (C, K), weights of the cells. seed, options: arguments of cell_replicates.
    luck: (K, R), of tuning (stats/tuning.py), to add to the replicates of each slice. It is not widened, because it
    does not come from the images.
    Returns the tested contrasts of each slice."""
    estimates, replicates, family = {}, [], []
    for number, (cells, images) in enumerate(zip(scores, num_images, strict=True)):
        factor = widening(images, level / (len(scores) * len(contrasts)))
        parts = [widened(each[:, 1:], factor) for each in cells]
        sample = cell_replicates([each[:, 0] for each in cells], parts, seed, **options)
        replicates.append(sample if luck is None else sample + luck)
        estimates |= {(number, cell): each[:, 0].mean() for cell, each in enumerate(cells)}
        family += [{(number, cell): factor for cell, factor in enumerate(row)} for row in contrasts]
    found = assess_family(family, estimates, np.concatenate(replicates), level)
    return [found[start : start + len(contrasts)] for start in range(0, len(found), len(contrasts))]


def widening(num_images: int, level: float) -> float:
    """Return the factor by which a sample of n images varies more than its resamples, at a level.

    The variance of resamples is (n - 1) / n of the variance of samples, and the ends of an interval for a mean are
    quantiles of Student's t with n - 1 degrees of freedom, not of the normal distribution."""
    tail = 1 - level / 2
    return float(np.sqrt(num_images / (num_images - 1)) * stdtrit(num_images - 1, tail) / ndtri(tail))


def widened(replicates: np.ndarray, factor: float) -> np.ndarray:
    """Return replicates (n, R) with their deviations from the mean of each row multiplied by `factor`."""
    mean = np.nanmean(replicates, axis=1, keepdims=True)
    return mean + factor * (replicates - mean)


def needed_replicates(num_tests: int) -> int:
    """Return the number of resamples at which MIN_TAIL of them are beyond each end of a corrected interval."""
    return round(MIN_TAIL * num_tests * 2 / LEVEL)
