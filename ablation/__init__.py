"""Train grids of experiments, compare their scores, and test which differences are significant; for every task."""
