"""Tests of the HTML report of a comparison: its contents, and how a browser shows it."""

import html
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ablation.comparison import Cell, Comparison, Difference, Note
from ablation.display import plots
from ablation.display.report import MAX_BYTES, OPEN_CLASSES, write_report
from ablation.display.sentences import question_of
from stats.contrasts import Interval

EVERY_SECTION = [
    "scores", "differences", "effects", "limits", "costs", "errors", "disagreements", "examples", "classes", "sizes",
    "curves", "how", "experiments",
]  # fmt: skip
WARNING = "protocol.nms_iou is 0.45 in a and 0.5 in b"
UNDEFINED = Interval(math.nan, math.nan, math.nan, math.nan, math.nan)


def report(comparison: Comparison, folder: Path) -> str:
    write_report(folder / "report.html", comparison)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def comparison(new_experiments) -> Comparison:
    """Return a comparison that has data for every section. Read-only."""
    experiments = new_experiments()
    for row, quality in (("ResNet50Backbone_B", 0.3), ("SwinTBackbone_B", 0.9)):
        for column in ("none", "fpn"):
            for seed in (0, 1):
                experiments.add(row, column, seed, quality)
    comparison = experiments.compare()
    comparison.warnings.append(WARNING)
    return comparison


@pytest.fixture(scope="module")
def text(comparison, tmp_path_factory) -> str:
    """Return the report of the comparison."""
    return report(comparison, tmp_path_factory.mktemp("report"))


def tree_of(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def sections_of(text: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)">', text)


def text_of(text: str) -> str:
    """Return the text of a page without markup."""
    parser, found = HTMLParser(), []
    parser.handle_data = found.append
    parser.feed(text)
    return " ".join(" ".join(found).split())


# ---- file --------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_with_every_section_and_all_references_resolve_within_it(text):
    assert sections_of(text) == EVERY_SECTION
    elements = list(tree_of(text).iter())
    ids = [element.get("id") for element in elements if element.get("id")]
    assert len(ids) == len(set(ids))
    links = [
        value
        for element in elements
        for name, value in element.attrib.items()
        if name.rpartition("}")[2] in ("href", "src", "srcset", "data", "action", "poster")
    ]
    links += re.findall(r"url\(([^)]*)\)", text)
    assert links
    assert [link for link in links if not link.startswith("data:") and link.removeprefix("#") not in ids] == []


def test_the_page_loads_no_other_files(text):
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<>)]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # XML namespaces
    assert not re.search(r"<script|<iframe|<object|<embed|@import|@font-face", text)


def test_names_are_escaped_so_that_they_are_never_markup(experiments, tmp_path):
    name = '<img src="x" onerror="alert(1)">&amp; "$x_1$" \'quoted\''
    experiments.add("A", classes=("one", f"two {name}"))
    experiments.add(f"B {name}", classes=("one", f"two {name}"))
    comparison = experiments.compare()
    comparison.title = f"title {name}"
    comparison.warnings.append(f"warning {name}")
    comparison.scored_cells[0].notes.append(Note(9, "failed", f"note {name}"))
    text = report(comparison, tmp_path)
    images = [element for element in tree_of(text).iter() if element.tag == "img"]
    assert all(image.get("src").startswith("data:image/jpeg;base64,") for image in images)
    assert all(f"{kind} {name}" in text_of(text) for kind in ("title", "warning", "note", "B", "two"))


# ---- sections ---------------------------------------------------------------------------------------------


def test_the_best_mean_and_the_baseline_are_marked_in_the_score_table(comparison, text):
    cells = list(tree_of(text).iter("td"))[:4]
    best = [cell.text.strip() for cell in cells if cell.get("class") == "best"]
    assert best == [f"{comparison.best.mean:.4f} ± {comparison.best.spread:.4f}"]
    assert ["baseline" in "".join(cell.itertext()) for cell in cells] == [True, False, False, False]


def test_rows_of_tables_are_labelled_with_what_they_are_for_cards_on_phones(text):
    titles = {
        section.get("id"): [row.get("data-label") for row in section.iter("th") if row.get("scope") == "row"]
        for section in tree_of(text).iter("section")
    }
    assert set(titles["limits"]) == {"seeds per cell"}
    assert titles["scores"][:2] == ["backbone"] * 2
    assert set(titles["differences"]) == {""}  # these rows have full names


def test_failed_cells_and_cells_not_in_the_comparison_are_marked(grid, tmp_path):
    comparison = grid.compare()
    failed = comparison.cells["strong", "none"]
    failed.runs.clear()
    failed.notes.append(Note(0, "failed", "loss is not finite at step 120"))
    del comparison.cells["strong", "fpn"]
    comparison.may_be_best.clear()
    comparison.per_class = comparison.per_class_change = {}
    shown = text_of(report(comparison, tmp_path))
    assert "no score failed" in shown
    assert "strong x none, seed 0: failed (loss is not finite at step 120)" in shown
    assert "not included" in shown


def test_sections_without_data_are_omitted(experiments, tmp_path):
    for row in "ab":
        path = experiments.add(row, scores={f"AP_{size}": None for size in ("small", "medium", "large")}, errors=None)
        shutil.rmtree(path / "examples")
        (path / "metrics.jsonl").unlink()
    comparison = experiments.compare(replicates=100)
    comparison.per_class = comparison.per_class_change = {}
    assert sections_of(report(comparison, tmp_path)) == [
        "scores", "differences", "costs", "disagreements", "how", "experiments",
    ]  # fmt: skip


def test_charts_of_each_cell_are_shown_if_the_runs_have_them(experiments, tmp_path):
    for row in "ab":
        path = experiments.add(row)
        for name in ("precision_recall", "confusion", "class_scores"):
            Image.new("RGB", (8, 8)).save(path / f"{name}.png")
    text = report(experiments.compare(), tmp_path)
    assert {"precision", "confusion"} <= set(sections_of(text))
    for what in ("precision by recall", "confusion matrix", "score of each class"):
        strip = text.partition(f'aria-label="{what}, by cell"')[2].partition("</div>")[0]
        assert re.findall("<figcaption>(.*?)</figcaption>", strip) == ["a x none", "b x none"]


def test_latencies_get_a_section_with_the_front_and_the_budget(grid, tmp_path):
    for number, path in enumerate(sorted(grid.folder.iterdir())):
        grid.measure(path, 10.0 + number // 2)
    text = report(grid.compare(budget=11.0), tmp_path)
    assert sections_of(text).index("latency") == sections_of(text).index("costs") + 1
    section = text.partition('<section id="latency">')[2].partition("</section>")[0]
    assert "<svg" in section
    shown = text_of(section)
    assert all(part in shown for part in ("10.00 [9.80, 10.20]", "within 11 ms", "Pareto front", "weak x none"))
    assert "Within 11 ms" in text_of(text.partition("<main>")[0])


def test_latencies_that_cannot_be_compared_are_a_warning(grid, tmp_path):
    for path in sorted(grid.folder.iterdir()):
        grid.measure(path, 10.0, device="cpu" if path.name == "experiment_1" else "H200")
    text = report(grid.compare(), tmp_path)
    section = text.partition('<section id="latency">')[2].partition("</section>")[0]
    assert 'class="warning"' in section
    assert all(part in section for part in ("device", "cpu", "H200", "python -m detection.latency"))
    assert "<svg" not in section


def test_undefined_numbers_are_dashes(experiments, tmp_path):
    for row in "ab":
        experiments.add(row, scores={"AP_small": None}, errors={"delta_AP50": {"missed": None, "both": 0.1}})
    comparison = experiments.compare()
    ends = (math.nan, math.nan)
    undefined = Difference(UNDEFINED, math.nan, True, ends, math.nan, math.nan, 2, 0.05, "undefined - one")
    comparison.differences.append(undefined)
    comparison.per_class["b", "none"]["cat"] = comparison.per_class_change["b", "none"]["cat"] = UNDEFINED
    text = report(comparison, tmp_path)
    assert "nan" not in re.findall(r"[a-z]+", text_of(text))
    assert 'cx="nan"' not in text


def test_classes_that_changed_most_are_first_and_the_rest_is_hidden(experiments, tmp_path):
    classes = [f"class {number:02d}" for number in range(80)]
    for row, quality in (("weak", 0.3), ("strong", 0.6)):
        experiments.add(row, quality=quality, classes=classes)
    comparison = experiments.compare()
    text = report(comparison, tmp_path)
    changes = comparison.per_class_change["strong", "none"]
    order = sorted(classes, key=lambda name: -abs(changes[name].estimate))
    shown, hidden = (
        re.findall(r'<th scope="row"[^>]*>(.*?)</th>', re.search(rf'aria-label="{label}">.*?</table>', text, re.S)[0])
        for label in ("score of each class", "score of the other classes")
    )
    assert shown + hidden == order
    assert len(shown) == OPEN_CLASSES


def test_the_table_of_all_cells_has_a_row_for_each_cell_if_there_are_more_cells_than_classes(experiments, tmp_path):
    for number in range(6):
        experiments.add(f"row {number}")
    text = report(experiments.compare(), tmp_path)
    table = re.search(r'aria-label="AP by class">.*?</table>', text, re.S)[0]
    rows = [[cell.text for cell in row] for row in tree_of(table[table.index("<table") :]).iter("tr")]
    assert [row[0] for row in rows[1:]] == [f"row {number} x none" for number in range(6)]
    assert rows[0][1:] == ["cat", "dog"]


def test_bars_of_classes_end_at_the_score_and_have_the_interval_and_the_change(comparison, text):
    table = re.search(r'aria-label="score of each class">.*?</table>', text, re.S)[0]
    (row,) = (row for row in tree_of(table[table.index("<table") :]).iter("tr") if row[0].text == "cat")
    assert len(row) == 5
    every = [score for scores in comparison.per_class.values() for score in scores.values()]
    scale = max(max(score.estimate, score.high) for score in every)
    for cell, column in zip(comparison.scored_cells, row[1:], strict=True):
        score = comparison.per_class[cell.place]["cat"]
        bar, whisker = column.find("span")
        assert bar.get("style") == f"width:{100 * score.estimate / scale:.1f}%"
        left, width = re.findall(r"[\d.]+", whisker.get("style"))
        assert float(left) == pytest.approx(100 * score.low / scale, abs=0.06)
        assert float(left) + float(width) == pytest.approx(100 * score.high / scale, abs=0.11)
        small = column.find("small")
        assert (small is None) == (cell is comparison.baseline_cell)
        if small is not None:
            change = comparison.per_class_change[cell.place]["cat"]
            assert (small.get("class") == "shown") == (change.low > 0 or change.high < 0)


def test_example_images_are_side_by_side_with_the_ground_truth_first(comparison, text):
    strips = [each for each in tree_of(text).iter("div") if (each.get("aria-label") or "").startswith("image ")]
    captions = [[caption.text for caption in strip.iter("figcaption")] for strip in strips]
    assert captions == [["ground truth", *(cell.name for cell in comparison.scored_cells)]] * 2


def test_pictures_of_the_least_prominent_cells_are_left_out_of_a_page_that_would_be_too_large(experiments, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)  # 900 kB as a PNG
    for number, row in enumerate(("base", "good", "poor", "best")):
        path = experiments.add(row, quality=(0.4, 0.6, 0.2, 0.9)[number])
        Image.fromarray(noise).save(path / "confusion.png")
    text = report(experiments.compare(), tmp_path)
    assert len(text.encode()) <= MAX_BYTES
    strip = text.partition('aria-label="confusion matrix, by cell"')[2].partition("</div>")[0]
    assert re.findall("<figcaption>(.*?)</figcaption>", strip) == ["base x none", "best x none"]
    assert "only 2 of 4 cells are shown" in text_of(text)


def test_plots_have_the_colours_of_the_page_so_that_they_are_legible_in_the_dark(text):
    drawings = " ".join(re.findall("<svg.*?</svg>", text, re.S))
    assert "var(--ink)" in drawings
    assert not re.search("(fill|stroke): #(000000|ffffff|333333)", drawings)


def test_the_question_is_first(comparison, text):
    question = "Which backbone x neck has the highest mAP on the 60 validation images (val.json), and is the difference"
    assert question_of(comparison) == f"{question} real?"
    assert text.index(question) < text.index('class="lead"') < text.index("<nav")


def test_the_question_names_rows_or_columns_only_if_these_are_what_differs(experiments):
    for row in "ab":
        experiments.add(row, data={"root": "datasets/blood"})
    comparison = experiments.compare()
    assert question_of(comparison).startswith(
        "Which backbone has the highest mAP on the 60 validation images (blood, val"
    )
    comparison.rows, comparison.columns = comparison.columns, comparison.rows
    assert question_of(comparison).startswith("Which neck has")
    comparison.cells["b", "none"].row = "a part of the recipe"
    assert question_of(comparison).startswith("Which of the 2 cells has")


def test_the_report_lists_the_path_commit_and_command_of_every_experiment(comparison, text):
    shown = text_of(text.partition('<section id="experiments">')[2])
    runs = [run for cell in comparison.scored_cells for run in cell.runs]
    assert all(str(run.path) in shown and run.starts[0]["command"] in shown for run in runs)
    assert shown.count("c87c5e7aa7") == len(runs)
    assert shown.count("with uncommitted changes") == 4  # seed 1 of each cell


# ---- plots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 0.2), (2, 0.3), (3, 0.25), (4, 0.4)], [0, 1, 3]),  # the third costs more than the second, and is worse
        ([(3, 0.4), (1, 0.2)], [1, 0]),  # cheapest first
        ([(1, 0.2), (1, 0.3), (2, 0.3)], [1]),  # worse at equal cost; more cost at equal score
        ([(1, 0.2), (1, 0.2)], [0, 1]),  # equal points do not dominate each other
        ([(-50, 0.2), (-40, 0.3), (-30, 0.1)], [0, 1]),  # images/s, negated
    ],
)
def test_the_pareto_front_has_the_points_that_no_point_dominates(points, expected):
    assert plots.pareto_front(points) == expected


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (16, 1), (8, 7)])
def test_every_cell_has_a_distinct_style(rows, columns):
    names = [f"r{i}" for i in range(rows)], [f"c{i}" for i in range(columns)]
    cells = {(row, column): Cell(row, column) for row in names[0] for column in names[1]}
    comparison = Comparison("grid", "mAP", "row", "column", *names, cells, ("r0", "c0"), 1000)
    assert len(set(plots.cell_styles(comparison).values())) == rows * columns


# ---- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_in_browser(tmp_path_factory):
    """Return a function that opens a file in headless Chromium and returns its final markup and console lines."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on the PATH to open the report in")

    def show(path: Path) -> tuple[str, list[str]]:
        done = subprocess.run(
            [
                browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--hide-scrollbars",
                f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--enable-logging=stderr", "--v=0",
                "--virtual-time-budget=2000", "--dump-dom", path.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert "</html>" in done.stdout, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return show


def evaluate_in_page(open_in_browser, text: str, folder: Path, width: int, expression: str) -> str:
    """Evaluate a JavaScript expression, in which `page` is the document, on a screen of `width` pixels."""
    frame = folder / "frame.html"
    frame.write_text(
        f'<!DOCTYPE html><html><body><iframe width="{width}" height="800" style="border: 0" '
        f'srcdoc="{html.escape(text)}"></iframe><output></output><script>'
        "document.querySelector('iframe').onload = (event) => { const page = event.target.contentDocument;"
        f"document.querySelector('output').textContent = {expression} }}</script></body></html>",
        encoding="utf-8",
    )
    shown, _ = open_in_browser(frame)
    return re.search(r"<output>(.*?)</output>", shown)[1]


@pytest.fixture(scope="module")
def crowded_text(new_experiments, tmp_path_factory) -> str:
    """Return a report with everything that can be too wide: long names without spaces, notes, warnings."""
    experiments = new_experiments()
    classes = ["class_" + "x" * 60, *(f"class {number}" for number in range(20))]
    for row in ("ResNet50Backbone_B", "SwinTBackbone_B" + "_with_a_long_name" * 5):
        for column in ("none", "fpn", "pan", "dense_fpn"):
            experiments.add(row, column, classes=classes)
    comparison = experiments.compare(replicates=100)
    comparison.warnings.append("/a/path/without/a/space" * 8)
    comparison.scored_cells[1].notes.append(Note(1, "failed", "a reason of some length " * 4))
    Image.new("RGB", (900, 900)).save(comparison.scored_cells[0].runs[0].path / "confusion.png")
    return report(comparison, tmp_path_factory.mktemp("report"))


@pytest.mark.slow
def test_a_browser_shows_the_page_without_errors(open_in_browser, text, tmp_path):
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    shown, console = open_in_browser(tmp_path / "report.html")
    assert sections_of(shown) == EVERY_SECTION
    assert console == []


@pytest.mark.slow
def test_the_page_is_not_wider_than_a_phone(open_in_browser, crowded_text, tmp_path):
    width = "page.documentElement.scrollWidth"
    assert evaluate_in_page(open_in_browser, crowded_text, tmp_path, 390, width) == "390"
