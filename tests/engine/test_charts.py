"""engine/charts.py: names beside charts fit, and stay apart; files are small and whole."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from engine.charts import NAME_LENGTH, save_chart, shorten


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["tench"], ["tench"]),
        (["n02109961_Eskimo_dog_husky_of_the_north"], ["n02109961_Eskimo_dog_…"]),
        (
            [f"black-and-tan coonhound of the {place}" for place in ("mountains", "valleys")],
            ["black-and-…e mountains", "black-and-…the valleys"],
        ),
        ([f"{30 * 'a'}{letter}{30 * 'b'}" for letter in "xyz"], [f"{16 * 'a'}… {number}" for number in range(3)]),
    ],
)
def test_names_are_cut_where_they_do_not_differ_or_numbered(names, shown):
    assert list(shorten(names).values()) == shown


def test_a_number_that_makes_another_name_is_passed_over():
    numbered = f"{16 * 'a'}… 1"
    names = [f"{30 * 'a'}{letter}{30 * 'b'}" for letter in "xyz"]
    assert list(shorten([*names, numbered]).values()) == [*(f"{16 * 'a'}… {number}" for number in (0, 2, 3)), numbered]


def test_a_thousand_long_names_stay_apart():
    shown = shorten([f"class of a long name {number:04d} {20 * '-'}" for number in range(1000)]).values()
    assert len(set(shown)) == 1000
    assert max(map(len, shown)) <= NAME_LENGTH


def test_a_chart_has_a_palette_and_its_own_size(tmp_path):
    save_chart(tmp_path / "chart.png", Figure((3, 2), 50))
    with Image.open(tmp_path / "chart.png") as picture:
        assert (picture.mode, picture.size) == ("P", (150, 100))
