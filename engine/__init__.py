"""What the training loop stands on: config, processes, checkpoints, experiments. (See the README for the floors.)"""
