"""Image classification by Swin: data, the training task, what it leaves, scoring and predicting."""
