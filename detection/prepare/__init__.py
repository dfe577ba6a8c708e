"""Data before training: fetched, converted, checked and shrunk (`python -m detection.data`)."""
