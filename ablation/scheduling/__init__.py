"""Which runs of a grid are missing, and start them: on this machine, or as a Slurm array job."""
