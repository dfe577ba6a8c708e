"""Single-shot detectors: the parts, the training task and its commands."""
