"""Points for the trials of a tuning: drawn before the first trial starts, and the same for every row of a table.

ranges = {"optim.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
points = draw_points(ranges, trials=6, seed=0)
at_edge(points, chosen, ranges)    # {"optim.learning_rate": "highest"}: the best rate may be higher still
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.stats import qmc

from engine.text import shown

Ranges = Mapping[str, Mapping[str, Sequence]]  # as in a grid file, see above
Points = Sequence[Mapping[str, Any]]  # for each trial, a dict from the name of a hyperparameter to its value
Pairs = tuple[np.ndarray, np.ndarray]  # of trials, as two arrays of their numbers


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


EXPECTED = (
    "expected {log_uniform: [low, high]}, {uniform: [low, high]} or {choice: [value, value, ...]}, "
    "with low < high (above 0 for log_uniform)"
)


def check_ranges(ranges: Ranges) -> None:
    """Raise ValueError if a range is invalid. See check_range."""
    for name, spec in ranges.items():
        check_range(name, spec)


def check_range(name: str, spec: Any) -> None:
    """Raise ValueError if `spec` is not one entry of RANGES with valid limits or options.

    Limits are two finite numbers, low < high, above 0 for log_uniform. Options are at least two different values.
    name: the field, such as optim.learning_rate, for the message. spec: as read from a grid file, of any type."""
    is_valid = False
    if isinstance(spec, Mapping) and len(spec) == 1:
        [(kind, values)] = spec.items()
        if kind in RANGES and isinstance(values, list | tuple):
            is_valid = _are_options(values) if kind == "choice" else _are_limits(values, kind == "log_uniform")
    if not is_valid:
        raise ValueError(f"{name}: got {shown(spec)}, {EXPECTED}")


def _are_options(values: Sequence) -> bool:
    return len({json.dumps(value) for value in values}) == len(values) >= 2


def _are_limits(values: Sequence, is_positive: bool) -> bool:
    if len(values) != 2 or not all(_is_number(value) and math.isfinite(value) for value in values):
        return False
    low, high = values
    return low < high and (low > 0 or not is_positive)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
    """Return the hyperparameters whose chosen value is the "lowest" or "highest" drawn one; the best may be beyond it.

    chosen: number of the chosen trial. Options of a `choice` have no order and are left out."""
    edges = {}
    for name in (name for name, spec in ranges.items() if "choice" not in spec):
        drawn = [point[name] for point in points]
        if drawn[chosen] in (min(drawn), max(drawn)):
            edges[name] = "lowest" if drawn[chosen] == min(drawn) else "highest"
    return edges


def neighbours(points: Points) -> Pairs:
    """Return N - 1 pairs of neighbouring points: the edges of the minimum spanning tree.

    With one number per point, these are consecutive values. All points must be different."""
    squared = sum(_distances([point[name] for point in points]) ** 2 for name in points[0])
    return minimum_spanning_tree(np.sqrt(squared)).nonzero()


def _distances(values: Sequence) -> np.ndarray:
    """Return the distances between the N values of a hyperparameter, (N, N), from 0 to 1.

    Numbers are compared by rank, because units differ. Other values are categories: different ones have distance 1."""
    if all(map(_is_number, values)):
        ranks = np.unique(values, return_inverse=True)[1]
        return np.abs(ranks[:, None] - ranks) / max(ranks.max(), 1)
    texts = np.array([json.dumps(value) for value in values])
    return (texts[:, None] != texts).astype(np.float64)
