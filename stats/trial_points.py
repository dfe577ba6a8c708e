"""Points for the trials of a tuning: drawn before the first trial starts, and the same for every row of a table.

ranges = {"optim.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
points = draw_points(ranges, trials=6, seed=0)
at_edge(points, chosen, ranges)    # {"optim.learning_rate": "highest"}: the best rate may be higher still
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from scipy.stats import qmc

Ranges = Mapping[str, Mapping[str, Sequence]]  # as in a grid file, see above
Points = Sequence[Mapping[str, Any]]  # for each trial, a dict from the name of a hyperparameter to its value


def _log_uniform(fraction: float, limits: Sequence[float]) -> float:
    low, high = limits
    return _rounded(low * (high / low) ** fraction)


def _uniform(fraction: float, limits: Sequence[float]) -> float:
    low, high = limits
    return _rounded(low + (high - low) * fraction)


def _choice(fraction: float, options: Sequence) -> Any:
    return options[int(fraction * len(options))]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")  # reads well in a config


RANGES: dict[str, Callable[[float, Sequence], Any]] = {  # from a fraction in [0, 1) to a value
    "log_uniform": _log_uniform,
    "uniform": _uniform,
    "choice": _choice,
}


def check_ranges(ranges: Ranges) -> None:
    """Raise ValueError if a range is not one entry of RANGES with its limits or options."""
    for name, spec in ranges.items():
        kind, limits = next(iter(spec.items()), (None, ()))
        if len(spec) != 1 or kind not in RANGES:
            raise ValueError(f"range of {name}: got {dict(spec)}, expected one of {', '.join(RANGES)}")
        if kind == "choice" and not limits:
            raise ValueError(f"range of {name}: got no options, expected at least one")
        if kind != "choice" and not (len(limits) == 2 and limits[0] < limits[1]):
            raise ValueError(f"range of {name}: got {limits}, expected [low, high] with low < high")
        if kind == "log_uniform" and limits[0] <= 0:
            raise ValueError(f"range of {name}: got {limits}, expected positive limits; use uniform for others")


def draw_points(ranges: Ranges, trials: int, seed: int) -> list[dict[str, Any]]:
    """Return distinct quasi-random points: for each trial, a dict from the name of a hyperparameter to its value.

    ranges: dict from name to one entry of RANGES with its limits or options. Numbers have 3 significant digits.
    The points are a scrambled Halton sequence (Owen, arXiv 1706.02808), which is evenly spread for any number of
    trials; Sobol points are balanced only for powers of 2. The draws depend only on the arguments.
    Raises ValueError if a range is invalid, or if there are fewer different points than trials."""
    check_ranges(ranges)
    kinds = {name: next(iter(spec.items())) for name, spec in ranges.items()}
    found: dict[str, dict[str, Any]] = {}
    for fractions in qmc.Halton(len(ranges), scramble=True, rng=seed).random(100 * trials):
        pairs = zip(fractions.tolist(), kinds.items(), strict=True)
        point = {name: RANGES[kind](fraction, limits) for fraction, (name, (kind, limits)) in pairs}
        found.setdefault(repr(point), point)
        if len(found) == trials:
            return list(found.values())
    raise ValueError(
        f"trials: got {trials}, expected at most {len(found)}, the number of different points in the ranges"
    )


def at_edge(points: Points, chosen: int, ranges: Ranges) -> dict[str, str]:
    """Return the hyperparameters whose chosen value is the "lowest" or "highest" drawn one; the best may lie beyond it.

    chosen: number of the chosen trial. Options of a `choice` have no order and are left out."""
    edges = {}
    for name in (name for name, spec in ranges.items() if "choice" not in spec):
        drawn = [point[name] for point in points]
        if drawn[chosen] in (min(drawn), max(drawn)):
            edges[name] = "lowest" if drawn[chosen] == min(drawn) else "highest"
    return edges


def neighbours(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Return N - 1 pairs of neighbouring points, as two index arrays: the edges of the minimum spanning tree.

    With one hyperparameter, these are consecutive values. Distances are between ranks, because units differ. All points
    must be different."""
    ranks = np.stack(
        [np.unique([point[name] for point in points], return_inverse=True)[1] for name in points[0]], axis=1
    )
    ranks = ranks / np.maximum(ranks.max(axis=0), 1)
    return minimum_spanning_tree(cdist(ranks, ranks)).nonzero()
