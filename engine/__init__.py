"""What the training loop stands on: config, processes, optimizer, checkpoints, experiments, logs."""
