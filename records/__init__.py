"""Write and read the files of a run: experiment directory, metrics, status, typed results, trackers."""
