"""Alias of `python -m detection.evaluate`, kept for older scripts."""

from detection.evaluate import main, parse_arguments
from engine.start import start

if __name__ == "__main__":
    start(parse_arguments, main)
