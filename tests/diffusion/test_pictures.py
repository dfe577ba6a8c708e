import numpy as np
from PIL import Image

from diffusion.pictures import draw_animation, make_grid


def test_a_grid_shows_each_image_at_its_row_and_column():
    samples = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1).repeat(70, axis=3).repeat(70, axis=4)
    pixels = np.asarray(make_grid(samples))
    assert pixels.shape == (70 + 2 + 70, 70 + 2 + 70 + 2 + 70)
    assert [[int(pixels[y, x]) for x in (0, 72, 144)] for y in (0, 72)] == [[0, 1, 2], [3, 4, 5]]
    assert (pixels[70:72] == 255).all()


def test_small_images_are_enlarged_pixel_by_pixel():
    pixels = np.asarray(make_grid(np.array([[[[[7, 9], [1, 3]]]]], np.uint8)))
    assert pixels.shape == (64, 64)
    assert (pixels[:32, 32:] == 9).all()


def test_an_animation_shows_the_last_step_longest(tmp_path):
    steps = np.array([0, 100, 200], np.uint8).reshape(3, 1, 1, 1, 1, 1) * np.ones((1, 1, 1, 1, 64, 64), np.uint8)
    draw_animation(tmp_path / "a.gif", steps)
    with Image.open(tmp_path / "a.gif") as animation:
        shades, durations = [], []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            shades.append(animation.convert("L").getpixel((0, 0)))
            durations.append(animation.info["duration"])
    assert shades == [0, 100, 200]
    assert durations[-1] == 2000 > durations[0]
