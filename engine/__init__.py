"""Foundations of the training loop, independent of any task: config, processes, checkpoints, signals, messages."""
