"""What a model costs to run, in which arithmetic, and on what machine."""
