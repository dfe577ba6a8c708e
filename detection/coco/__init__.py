"""COCO data and scores: annotations, data set, transforms, evaluation, error types."""
