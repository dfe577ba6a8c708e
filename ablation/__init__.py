"""Experiments side by side, for every task: what differs, and whether the difference is real."""
