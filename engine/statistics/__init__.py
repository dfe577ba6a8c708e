"""From per-image results to scores, curves and intervals, for every task."""
