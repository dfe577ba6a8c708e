"""Grid files, their runs and trials, the states of these, and starting them: here, or as Slurm array jobs."""
