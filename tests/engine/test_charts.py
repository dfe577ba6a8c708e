"""engine/charts.py: names beside charts fit; files are small, and say who wrote them."""

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
def test_a_long_name_loses_its_middle(name, shown):
    assert shorten([name]) == {name: shown}
    assert len(shown) <= NAME_LENGTH


def test_a_chart_has_a_palette_and_its_own_size(tmp_path):
    save_chart(tmp_path / "chart.png", Figure((3, 2), 50))
    with Image.open(tmp_path / "chart.png") as picture:
        assert (picture.mode, picture.size) == ("P", (150, 100))
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("not a picture")
    assert [is_ours(tmp_path / f"{name}.png") for name in ("chart", "other", "text")] == [True, False, False]
