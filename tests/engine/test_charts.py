"""engine/charts.py: short class names, and small files that are recognised as written by this project."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from engine.charts import NAME_LENGTH, is_ours, save_chart, shorten


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tench", "tench"),
        ("a" * NAME_LENGTH, "a" * NAME_LENGTH),
        ("black-and-tan coonhound of the mountains", "black-and-…e mountains"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_the_middle_of_a_long_name_becomes_an_ellipsis(name, shown):
    assert shorten([name]) == {name: shown}
    assert len(shown) <= NAME_LENGTH


def test_a_chart_is_a_palette_image_that_is_recognised_as_ours(tmp_path):
    save_chart(tmp_path / "chart.png", Figure((3, 2), 50))
    with Image.open(tmp_path / "chart.png") as picture:
        assert (picture.mode, picture.size) == ("P", (150, 100))
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("not a picture")
    assert [is_ours(tmp_path / f"{name}.png") for name in ("chart", "other", "text")] == [True, False, False]
