"""The report of a comparison: what is in the file, and that a browser shows it."""

import html
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import rc_context
from PIL import Image

from ablation import page, plots
from ablation.comparison import Comparison, Difference, Note
from ablation.report import classes_section, costs_section, write_report
from records.results import Run
from stats.bootstrap import Interval

EVERY_SECTION = [
    "scores", "differences", "effects", "costs", "curves", "classes", "sizes", "errors", "examples", "experiments",
]  # fmt: skip


def report(comparison, tmp_path) -> str:
    write_report(tmp_path / "report.html", comparison)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(comparison_maker) -> Comparison:
    """A comparison that has data for every section; not to be changed."""
    comparison = comparison_maker()
    comparison.warnings = ["not comparable: protocol.nms_iou is 0.45 in a, 0.5 in b"]
    return comparison


@pytest.fixture(scope="module")
def text(whole, tmp_path_factory) -> str:
    """The report of it."""
    return report(whole, tmp_path_factory.mktemp("report"))


def changed(run: Run, **fields: object) -> Run:
    """The same run with other results."""
    return replace(run, results=run.results.model_copy(update=fields))


def tree_of(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def sections_of(text: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)">', text)


def text_of(text: str) -> str:
    """What a reader sees, without markup."""
    parser, found = HTMLParser(), []
    parser.handle_data = found.append
    parser.feed(text)
    return " ".join(" ".join(found).split())


def test_charts_of_each_cell_are_shown_where_the_runs_have_them(comparison, tmp_path):
    for cell in comparison.filled:
        for name in ("precision_recall", "confusion", "class_scores"):
            Image.new("RGB", (8, 8)).save(cell.runs[0].path / f"{name}.png")
    text = report(comparison, tmp_path)
    assert {"precision", "confusion"} <= set(sections_of(text))
    for what in ("precision by recall", "confusion matrix", "score of each class"):
        strip = text.partition(f'aria-label="{what}, by cell"')[2].partition("</div>")[0]
        assert re.findall("<figcaption>(.*?)</figcaption>", strip) == [cell.name for cell in comparison.filled]


# ---- the file ----------------------------------------------------------------------------------------------


def test_every_section_is_there_when_the_records_hold_its_data(text):
    assert sections_of(text) == EVERY_SECTION


def test_it_is_well_formed(text):
    assert tree_of(text).tag == "html"


def test_no_id_is_there_twice(text):
    ids = [element.get("id") for element in tree_of(text).iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_every_reference_leads_to_a_place_in_the_file(text):
    elements = list(tree_of(text).iter())
    ids = {element.get("id") for element in elements}
    links = [
        value
        for element in elements
        for name, value in element.attrib.items()
        if name.rpartition("}")[2] in ("href", "src", "srcset", "data", "action", "poster")
    ]
    links += re.findall(r"url\(([^)]*)\)", text)
    assert links
    assert [link for link in links if not link.startswith("data:") and link.removeprefix("#") not in ids] == []


def test_nothing_is_loaded_from_outside(text):
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<>)]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not places
    assert not re.search(r"<script|<iframe|<object|<embed|@import|@font-face", text)


def test_the_same_comparison_gives_the_same_file(whole, text, tmp_path):
    assert report(whole, tmp_path) == text


def test_names_are_shown_as_they_are_and_never_as_markup(comparison_maker, tmp_path):
    name = '<img src="x" onerror="alert(1)">&amp; "$x_1$" \'quoted\''
    comparison = comparison_maker(rows=("A", f"B {name}"), classes=("one", f"two {name}"))
    comparison.title = f"title {name}"
    comparison.warnings = [f"warning {name}"]
    comparison.cells["A", "fpn"].notes.append(Note(9, "failed", f"note {name}"))
    text = report(comparison, tmp_path)
    images = [element for element in tree_of(text).iter() if element.tag == "img"]
    assert all(image.get("src").startswith("data:image/jpeg;base64,") for image in images)
    assert all(f"{kind} {name}" in text_of(text) for kind in ("title", "warning", "note", "B", "two"))


def test_conclusion_and_warnings_come_before_the_sections(whole, text):
    top = text_of(text.partition("<main>")[0])
    assert whole.conclusion in top
    assert whole.warnings[0] in top


# ---- what is in the sections -------------------------------------------------------------------------------


def test_the_best_mean_and_the_baseline_are_marked_in_the_score_table(whole, text):
    cells = list(tree_of(text).iter("td"))[:4]
    best = [cell.text for cell in cells if cell.get("class") == "best"]
    assert best == [f"{whole.best.mean:.4f} ± {whole.best.spread:.4f}"]
    assert ["baseline" in "".join(cell.itertext()) for cell in cells] == [True, False, False, False]


def test_cells_that_failed_or_were_not_asked_for_say_so(comparison, tmp_path):
    failed = comparison.cells["SwinTBackbone_B", "none"]
    failed.runs.clear()
    failed.notes.append(Note(0, "failed", "loss is not finite at step 120"))
    del comparison.cells["SwinTBackbone_B", "fpn"]
    comparison.per_class = comparison.per_class_change = {}
    shown = text_of(report(comparison, tmp_path))
    assert "no score failed" in shown
    assert "SwinTBackbone_B x none: seed 0 failed: loss is not finite at step 120" in shown
    assert "not asked for" in shown


def test_a_single_cell_with_nothing_to_compare_has_no_differences(comparison_maker, tmp_path):
    comparison = comparison_maker(rows=("A",), columns=("none",), seeds=(0,))
    assert {"differences", "effects", "costs"}.isdisjoint(sections_of(report(comparison, tmp_path)))


def test_a_grid_with_nothing_finished_still_makes_a_page(comparison, tmp_path):
    for cell in comparison.cells.values():
        cell.runs.clear()
    comparison.differences = comparison.row_effects = comparison.column_effects = comparison.interactions = []
    comparison.per_class = comparison.per_class_change = {}
    assert sections_of(report(comparison, tmp_path)) == ["scores"]


def test_sections_without_data_are_left_out(comparison, tmp_path):
    comparison.row_effects = comparison.column_effects = comparison.interactions = []
    comparison.per_class = comparison.per_class_change = {}
    for cell in comparison.cells.values():
        for run in cell.runs:
            shutil.rmtree(run.path / "examples")
            run.curve.clear()
        cell.runs[:] = [
            changed(run, errors=None, per_class={}, scores={name: run.results.scores[name] for name in ("mAP", "AP50")})
            for run in cell.runs
        ]
    assert sections_of(report(comparison, tmp_path)) == ["scores", "differences", "costs", "experiments"]


def test_another_task_with_other_scores_is_shown_too(comparison, tmp_path):
    comparison.metric = "top1"
    comparison.per_class = comparison.per_class_change = {}
    for cell in comparison.cells.values():
        for run in cell.runs:
            score = run.score
            run.curve[:] = [{"epoch": 1, "top1": score}, {"epoch": 2, "top1": score}]
            cell.runs[cell.runs.index(run)] = changed(
                run,
                errors=None,
                task="classification",
                metric="top1",
                scores={"top1": score, "top5": 2 * score},
                per_class={"cat": {"accuracy": score}, "dog": {"accuracy": None}},
            )
    text = report(comparison, tmp_path)
    assert sections_of(text) == [name for name in EVERY_SECTION if name not in ("sizes", "errors")]
    assert "mAP" not in text_of(text)


def test_long_names_may_be_broken_where_a_word_in_them_ends():
    assert page.name_of("ResNet50Backbone_B x dense_fpn") == "ResNet50<wbr/>Backbone_B x dense_<wbr/>fpn"
    assert page.name_of("SwinTBackbone_A x none") == "SwinT<wbr/>Backbone_A x none"
    assert page.name_of("peak memory (MiB)") == "peak memory (MiB)"


def test_undefined_numbers_are_dashes(comparison, tmp_path):
    undefined = Interval(math.nan, math.nan, math.nan, math.nan, math.nan)
    comparison.differences.append(Difference("undefined - one", undefined, math.nan, 2))
    comparison.per_class["SwinTBackbone_B", "fpn"]["RBC"] = undefined
    comparison.per_class_change["SwinTBackbone_B", "fpn"]["RBC"] = undefined
    for cell in comparison.cells.values():
        cell.runs[0].results.errors.delta_AP50["missed"] = None
        cell.runs[0].results.scores["AP_small"] = None
    text = report(comparison, tmp_path)
    assert "nan" not in re.findall(r"[a-z]+", text_of(text))
    assert 'cx="nan"' not in text


def test_changes_by_class_are_sorted_from_the_best_to_the_worst(whole, text):
    tables = re.findall(r'aria-label="change of each class, SwinTBackbone_B x fpn">.*?</table>', text, re.S)
    changes = whole.per_class_change["SwinTBackbone_B", "fpn"]
    assert re.findall(r'<th scope="row">(.*?)</th>', tables[0]) == sorted(
        changes, key=lambda name: -changes[name].estimate
    )


def test_eighty_classes_are_a_table_and_no_plot(comparison_maker):
    comparison = comparison_maker(seeds=(0,), classes=[f"class {number}" for number in range(80)])
    content = classes_section(comparison).content
    assert "classes-plot" not in content
    assert content.count('<th scope="row">class 79</th>') == 1 + 3  # scores, and changes of three cells


def test_examples_stand_beside_each_other_with_the_ground_truth_first(whole, text):
    strips = [element for element in tree_of(text).iter("div") if element.get("class") == "strip"]
    captions = [[caption.text for caption in strip.iter("figcaption")] for strip in strips]
    assert captions == [["ground truth", *(cell.name for cell in whole.filled)]] * 2


def test_every_experiment_can_be_found_and_run_again(whole, text):
    shown = text_of(text.partition('<section id="experiments">')[2])
    runs = [run for cell in whole.filled for run in cell.runs]
    assert all(str(run.path) in shown and run.starts[0]["command"] in shown for run in runs)
    assert shown.count("c87c5e7aa7") == len(runs)
    assert shown.count("with uncommitted changes") == 4  # seed 1 of each cell


def test_speeds_of_different_devices_come_with_a_warning(comparison, text):
    run = comparison.filled[0].runs[0]
    cost = run.results.cost.model_copy(update={"device": "NVIDIA H200"})
    comparison.filled[0].runs[0] = changed(run, cost=cost)
    assert "different devices" in costs_section(comparison).content
    assert "different devices" not in text


# ---- plots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 0.2), (2, 0.3), (3, 0.25), (4, 0.4)], [0, 1, 3]),  # the third is dearer than the second, and worse
        ([(3, 0.4), (1, 0.2)], [1, 0]),  # cheapest first
        ([(1, 0.2), (1, 0.3), (2, 0.3)], [1]),  # as cheap and worse; as good and dearer
        ([(1, 0.2), (1, 0.2)], [0, 1]),  # equals do not beat each other
        ([(-50, 0.2), (-40, 0.3), (-30, 0.1)], [0, 1]),  # images/s, negated
    ],
)
def test_pareto_front(points, expected):
    assert plots.front(points) == expected


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (4, 4), (16, 1), (1, 16), (8, 7)])
def test_every_cell_has_a_look_of_its_own(comparison_maker, rows, columns):
    comparison = comparison_maker(
        rows=[f"r{i}" for i in range(rows)], columns=[f"c{i}" for i in range(columns)], seeds=(0,)
    )
    assert len(set(plots.looks(comparison).values())) == rows * columns


def test_a_cell_without_a_score_leaves_the_looks_of_the_others(comparison):
    before = plots.looks(comparison)
    comparison.filled[0].runs.clear()
    assert plots.looks(comparison) == before


def test_names_in_the_cost_plot_cover_neither_each_other_nor_a_point(comparison_maker):
    comparison = comparison_maker(
        rows=("ResNet50Backbone_A", "ResNet50Backbone_B", "SwinTBackbone_A", "SwinTBackbone_B"),
        columns=("none", "fpn", "pan", "dense_fpn"),
        seeds=(0,),
    )
    cells = comparison.filled
    with rc_context(plots.STYLE):
        figure = plots.draw_costs(
            [cell.mean_of("cost", "gflops") for cell in cells], cells, list(plots.looks(comparison).values()),
            "GFLOPs", "mAP", False,
        )  # fmt: skip
        figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    points = axes.transData.transform([(cell.mean_of("cost", "gflops"), cell.mean) for cell in cells])
    assert len(boxes) >= 6
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes)  # with itself
    assert not any(box.contains(*point) for box in boxes for point in points)


# ---- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_in_browser(tmp_path_factory):
    """A function that opens a file in headless Chromium, and returns the page's markup after its scripts have run
    and what it wrote to the console."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on the PATH: the report was not opened in a browser")

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


def measured(open_in_browser, text: str, folder: Path, width: int, what: str) -> str:
    """What a script's expression says of the page, its document being `page`, on a screen of this width in pixels."""
    frame = folder / "frame.html"
    frame.write_text(
        f'<!DOCTYPE html><html><body><iframe width="{width}" height="800" style="border: 0" '
        f'srcdoc="{html.escape(text)}"></iframe><output></output><script>'
        "document.querySelector('iframe').onload = (event) => { const page = event.target.contentDocument;"
        f"document.querySelector('output').textContent = {what} }}</script></body></html>",
        encoding="utf-8",
    )
    shown, _ = open_in_browser(frame)
    return re.search(r"<output>(.*?)</output>", shown)[1]


def width_on_a_phone(open_in_browser, text: str, folder: Path) -> int:
    """How wide the page is, in pixels, where the screen is 390 wide."""
    return int(measured(open_in_browser, text, folder, 390, "page.documentElement.scrollWidth"))


CUT_OFF = (  # the tables that are wider than their place, and whether a hint says so
    "[...page.querySelectorAll('.box')].filter((box) => box.scrollWidth > box.clientWidth)"
    ".map((box) => event.target.contentWindow.getComputedStyle(box, '::before').content)"
)


@pytest.fixture(scope="module")
def crowded_text(comparison_maker, tmp_path_factory) -> str:
    """The report of a comparison with everything that is wide: long names without a space, notes, warnings."""
    comparison = comparison_maker(
        rows=("ResNet50Backbone_B", "SwinTBackbone_B" + "_with_a_long_name" * 5),
        columns=("none", "fpn", "pan", "dense_fpn"),
        seeds=(0,),
        classes=["class_" + "x" * 60, *(f"class {number}" for number in range(20))],
    )
    comparison.warnings = ["/a/path/without/a/space" * 8]
    comparison.filled[1].notes.append(Note(1, "failed", "a reason that is told at some length " * 4))
    Image.new("RGB", (900, 900)).save(comparison.filled[0].runs[0].path / "confusion.png")
    return report(comparison, tmp_path_factory.mktemp("report"))


@pytest.mark.slow
def test_a_browser_finds_no_error_in_it(open_in_browser, text, tmp_path):
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    shown, console = open_in_browser(tmp_path / "report.html")
    assert sections_of(shown) == EVERY_SECTION
    assert console == []


@pytest.mark.slow
def test_an_error_in_a_page_would_be_found(open_in_browser, text, tmp_path):
    flaw = "<script>console.error('one'); undefinedName()</script>"
    (tmp_path / "broken.html").write_text(text.replace("</main>", f"</main>{flaw}"), encoding="utf-8")
    _, console = open_in_browser(tmp_path / "broken.html")
    assert ["one" in console[0], "undefinedName is not defined" in console[1]] == [True, True]


@pytest.mark.slow
def test_a_phone_need_not_scroll_sideways(open_in_browser, crowded_text, tmp_path):
    assert width_on_a_phone(open_in_browser, crowded_text, tmp_path) == 390


@pytest.mark.slow
def test_no_table_of_a_small_grid_is_cut_off_on_a_desk(open_in_browser, text, tmp_path):
    assert measured(open_in_browser, text, tmp_path, 1280, CUT_OFF) == ""


@pytest.mark.slow
def test_tables_that_a_phone_cuts_off_say_that_they_scroll(open_in_browser, text, tmp_path):
    assert set(measured(open_in_browser, text, tmp_path, 390, CUT_OFF).split(",")) == {'"scroll sideways for more"'}


@pytest.mark.slow
def test_a_page_too_wide_for_a_phone_would_be_found(open_in_browser, crowded_text, tmp_path):
    flawed = crowded_text.replace(".box { overflow: auto;", ".box {")
    assert width_on_a_phone(open_in_browser, flawed, tmp_path) > 390
