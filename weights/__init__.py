"""Find public checkpoints (the registry), read weights files, and publish weights."""
