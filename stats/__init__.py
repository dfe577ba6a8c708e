"""Statistics as pure functions: bootstrap confidence intervals, contrasts, and precision-recall curves."""
