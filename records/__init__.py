"""What a run leaves behind and how it is read: experiments, metrics, typed results, trackers."""
