"""The registry of public checkpoints, reading weights files, and publishing weights."""
