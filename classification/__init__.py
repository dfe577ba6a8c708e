"""Image classification with Swin: data, training, evaluation and prediction."""
