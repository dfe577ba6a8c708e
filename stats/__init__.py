"""Statistics as pure functions: bootstrap, intervals, precision and recall."""
