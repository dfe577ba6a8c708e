"""Scores of a detector on corrupted images: noise, blur, weather and digital artefacts (arXiv 1907.07484)."""
