"""Detectors as programs for others: export formats, and how long each program takes."""
