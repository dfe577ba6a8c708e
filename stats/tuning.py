"""Temporary."""

import math
from collections.abc import Mapping

from scipy.stats.qmc import Halton


def draw_points(ranges: Mapping[str, Mapping], trials: int, seed: int) -> list[dict]:
    points = []
    for row in Halton(len(ranges), seed=seed).random(trials):
        point = {}
        for (name, range_), u in zip(ranges.items(), row, strict=True):
            [(kind, args)] = range_.items()
            if kind == "choice":
                point[name] = args[int(u * len(args))]
            else:
                low, high = map(math.log if kind == "log_uniform" else float, args)
                value = low + u * (high - low)
                point[name] = float(f"{math.exp(value) if kind == 'log_uniform' else value:.3g}")
        points.append(point)
    return points
