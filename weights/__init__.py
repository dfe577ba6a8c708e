"""Weights in and out: the registry of public checkpoints, releases, publishing."""
