"""engine/terminal.py: control characters in names from files are escaped wherever the names are printed."""

import logging
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from ablation.comparison import Difference
from ablation.display import plots
from ablation.display.formats import Table, to_latex, to_markdown
from ablation.display.report import breakable
from data import DatasetError, read_image
from detection.coco.annotations import Defect
from detection.coco.detections import Detections
from detection.drawing import charts, pictures
from engine.charts import shorten
from engine.logbook import logger, start_logging
from engine.terminal import printable, printable_lines
from engine.text import listed
from records.experiment import table
from stats.contrasts import Interval
from weights.model_card import plain

EVIL = "cat\nerror: fake\x1b[2J\x9b31m\r\u202egod"


def is_harmless(text):
    return not set(text) & set("\x1b\x9b\r\u202e") and not any(line.startswith("error:") for line in text.splitlines())


def test_control_characters_are_escaped():
    assert printable(EVIL) == r"cat\nerror: fake\x1b[2J\x9b31m\r\u202egod"
    assert printable_lines("a\tb\nc\x1bd\x00") == "a\tb\nc\\x1bd\\x00"


@pytest.mark.parametrize("name", ["Kätzchen 猫", "عربي", "👩\u200d🔬", "non\u00a0breaking", r"back\slash", ""])
def test_names_in_any_script_are_unchanged(name):
    assert printable(name) == printable_lines(name) == name


@pytest.mark.parametrize(
    "shown",
    [
        lambda: table([{"class": EVIL, "AP": 0.5}]),
        lambda: to_markdown(Table(EVIL[:3], ["class", EVIL], [[EVIL, "0.5"]], notes=[EVIL])),
        lambda: to_latex(Table(EVIL[:3], ["class", EVIL], [[EVIL, "0.5"]], notes=[EVIL])),
        lambda: listed([EVIL, EVIL]),
        lambda: plain(EVIL),
        lambda: str(breakable(EVIL)),
        lambda: shorten([EVIL[:16]])[EVIL[:16]],
        lambda: str(Defect(Path(EVIL), "images[0]", "no such file")),
        lambda: repr(Detections(np.zeros((1, 4)), np.ones(1), np.ones(1), [EVIL], np.ones(1))),
    ],
    ids=["table", "markdown", "latex", "listed", "card", "page", "chart", "defect", "detections"],
)
def test_names_are_harmless_in_text_output(shown):
    text = shown()
    assert "fake" in text
    assert is_harmless(text)


@pytest.mark.filterwarnings("error")  # matplotlib warns about characters that its font lacks
def test_names_are_harmless_in_pictures(tmp_path):
    box = np.array([2.0, 2, 20, 20])
    panel = pictures.Panel(np.zeros((40, 40, 3), np.uint8), EVIL, [pictures.Mark(box, (1, 0, 0), EVIL)])
    pictures.draw_panels(tmp_path / "panels.png", [panel], columns=1, side=300)
    charts.draw_confusion(tmp_path / "confusion.png", np.eye(3, dtype=int), [EVIL, "dog"], 0.3)
    interval = Interval(0.1, 0.0, 0.2, 0.5, 0.1)
    difference = Difference(interval, 0.5, True, (0.0, 0.2), 0.2, 0.1, 1, 0.05, EVIL)
    comparison = SimpleNamespace(margin=None, covers_seeds=True, lower_is_better=False, metric="mAP")
    drawing = plots.draw_differences([difference], {}, comparison, (0.0, 0.2))
    svg = plots.to_svg(drawing, "differences", "differences")
    assert "fake" in svg
    ElementTree.fromstring(svg)


def test_a_file_name_is_harmless_in_an_error(tmp_path):
    with pytest.raises(DatasetError) as error:
        read_image(tmp_path / EVIL)
    assert is_harmless(str(error.value))


def test_messages_contain_no_escape_codes_on_the_terminal_and_in_the_log_file(tmp_path, capsys):
    start_logging(tmp_path, verbose=True)
    logger.log(logging.INFO, "class %s\nsecond line", "\x1b[2Jcat")
    for text in (capsys.readouterr().out, (tmp_path / "train.log").read_text()):
        assert "\\x1b[2Jcat\nsecond line\n" in text
        assert "\x1b" not in text


def test_errors_contain_no_escape_codes_on_the_terminal(run_in_process, capsys):
    def main(*_):
        raise ValueError("class \x1b[2Jcat")

    command = SimpleNamespace(__name__="command", parse_arguments=list, main=main)
    assert run_in_process(command) == (2, "", ["error: class \\x1b[2Jcat"])
