"""Prepare data sets for training: fetch, convert, split, check and shrink them (`python -m detection.data`)."""
