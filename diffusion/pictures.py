"""Draw samples: grids of images, and animations of the sampling steps."""

from pathlib import Path

import numpy as np
from PIL import Image

from engine.files import write_atomically

GAP = 2  # pixels between images
ENLARGED_SIDE = 64  # pixels; smaller images are enlarged by an integer factor, at most to this side
FRAME_MILLISECONDS = 80
LAST_FRAME_MILLISECONDS = 2000


def make_grid(samples: np.ndarray) -> Image.Image:
    """Return images in a grid on white. samples: (rows, columns, C, S, S) uint8; C is 1 or 3."""
    rows, columns, channels, side, _ = samples.shape
    scale = max(1, ENLARGED_SIDE // side)
    samples = samples.repeat(scale, axis=3).repeat(scale, axis=4)
    cell = side * scale + GAP
    cells = np.pad(samples, [(0, 0)] * 3 + [(0, GAP)] * 2, constant_values=255)
    grid = cells.transpose(2, 0, 3, 1, 4).reshape(channels, rows * cell, columns * cell)[:, :-GAP, :-GAP]
    return Image.fromarray(grid[0] if channels == 1 else grid.transpose(1, 2, 0))


def draw_grid(path: Path, samples: np.ndarray) -> None:
    """Write a grid of samples as a PNG, see make_grid."""
    write_atomically(path, lambda file: make_grid(samples).save(file, "PNG", optimize=True))


def draw_animation(path: Path, steps: np.ndarray) -> None:
    """Write the sampling steps as an animated GIF. steps: (steps, rows, columns, C, S, S) uint8, see make_grid."""
    first, *rest = [make_grid(samples) for samples in steps]
    milliseconds = [FRAME_MILLISECONDS] * len(rest) + [LAST_FRAME_MILLISECONDS]
    write_atomically(
        path,
        lambda file: first.save(file, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0),
    )
