"""ablation/display/pictures.py: which pictures of the runs fit into the page, and how they are found."""

import base64
from pathlib import Path

import pytest
from PIL import Image

from ablation.display import pictures
from ablation.display.pictures import CAPTION, cells_that_fit, data_uri, examples, pictures_of


@pytest.fixture
def comparison(experiments):
    """Return a comparison of three cells, whose runs have example images with the same names."""
    for row in "abc":
        experiments.add(row)
    return experiments.compare()


def size_in_page(*files: Path) -> int:
    return sum(CAPTION + file.stat().st_size * 4 // 3 for file in files)


def test_the_first_cells_are_chosen_as_long_as_their_pictures_fit(comparison):
    first, second, _ = comparison.scored_cells
    folders = [cell.runs[0].path / "examples" for cell in (first, second)]
    room = size_in_page(*folders[0].iterdir(), *folders[1].glob("[0-9]?.jpg"), *folders[1].glob("[0-9].jpg"))
    assert cells_that_fit(comparison.scored_cells, room) == [first, second]  # the ground truth counts once
    assert cells_that_fit(comparison.scored_cells, room - 1) == [first]
    assert cells_that_fit(comparison.scored_cells, 0) == []


def test_a_picture_that_no_page_shows_takes_no_room(comparison):
    (cell, *_) = comparison.scored_cells
    room = size_in_page(*(cell.runs[0].path / "examples").iterdir())
    (cell.runs[0].path / "curves.png").write_bytes(bytes(10_000))
    assert cells_that_fit([cell], room) == [cell]
    (cell.runs[0].path / "confusion.png").write_bytes(bytes(10_000))
    assert cells_that_fit([cell], room) == []


def test_examples_are_in_the_order_of_their_numbers_with_the_ground_truth_first(comparison):
    cells = comparison.scored_cells[:2]
    found = examples(cells)
    assert list(found) == ["7", "12"]
    assert list(found["7"]) == ["ground truth", "a x none", "b x none"]
    assert found["7"]["ground truth"] == cells[0].runs[0].path / "examples/7_truth.jpg"


def test_cells_without_a_picture_are_left_out(comparison):
    Image.new("RGB", (4, 4)).save(comparison.scored_cells[1].runs[0].path / "confusion.png")
    assert list(pictures.pictures(comparison.scored_cells, "confusion.png")) == ["b x none"]


def test_the_page_says_if_cells_were_left_out_to_keep_it_small(comparison):
    assert pictures_of(comparison, comparison.scored_cells)["pictured"] == ""
    assert "1 of 3 cells" in pictures_of(comparison, comparison.scored_cells[2:])["pictured"]


def test_chosen_cells_are_shown_in_the_order_of_the_table(comparison):
    found = pictures_of(comparison, comparison.scored_cells[::-1])["examples"]["7"]
    assert list(found)[1:] == ["a x none", "b x none", "c x none"]


@pytest.mark.parametrize(("name", "kind"), [("a.png", "image/png"), ("a.jpg", "image/jpeg")])
def test_a_data_uri_has_the_content_and_type_of_the_file(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"content")
    assert data_uri(tmp_path / name) == f"data:{kind};base64,{base64.b64encode(b'content').decode()}"


def test_bytes_are_those_of_a_jpeg():
    assert data_uri(b"jpeg") == f"data:image/jpeg;base64,{base64.b64encode(b'jpeg').decode()}"
