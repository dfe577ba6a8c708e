"""Factorial grids: from the factors of a grid file to main effects, and what the tables say about aliases."""

import csv
import io
import json
import math
from argparse import Namespace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ablation import grid as grid_command
from ablation.cells import compare
from ablation.comparison import Comparison
from ablation.display.report import write_report
from ablation.display.sentences import conclusion_of, design_notes
from ablation.display.tables import as_text, score_table, to_csv
from ablation.families import factor_contrasts
from ablation.scheduling.jobs import State, read_grid
from engine.strict_yaml import ConfigError
from stats.contrasts import assess_family
from stats.factorial import Design
from tests.ablation.conftest import Experiments
from tests.ablation.display.test_report import sections_of, text_of, tree_of

GRID = """
task: detection.training
seeds: [0, 1]
rows:
  - {name: small, config: CONFIG}
  - {name: large, config: CONFIG, overrides: [optim.clip_norm=2]}
factors:
  - {name: fast, overrides: [optim.learning_rate=0.1]}
  - {name: momentum, overrides: [optim.momentum=0.8, optim.schedule=cosine]}
  - {name: decay, overrides: [optim.weight_decay=0.1]}
  - {name: average, overrides: [train.ema_decay=0.98], product_of: [fast, momentum, decay]}
"""
LABELS = ["fast (A)", "momentum (B)", "decay (C)", "average (D)"]
EFFECTS = {"fast": 0.3, "momentum": 0.0, "decay": 0.0, "average": 0.0}  # on the share of objects that are found


def write_grid(folder, text=GRID):
    (folder / "base.yaml").write_text("train: {epochs: 3}\n")
    path = folder / "grid_factors.yaml"
    path.write_text(text.replace("CONFIG", str(folder / "base.yaml")))
    return path


# ---- grid files ----------------------------------------------------------------------------------------------


def test_each_design_point_is_a_column_with_the_overrides_of_its_factors(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    points = ["none", "AD", "BD", "AB", "CD", "AC", "BC", "ABCD"]
    assert [job.name for job in grid.jobs] == [
        f"{row} x {point}, seed {seed}" for seed, row, point in product((0, 1), ("small", "large"), points)
    ]
    recipes = {job.cell: job.recipe() for job in grid.jobs}
    assert recipes["small x none"] == {"train": {"epochs": 3, "seed": 1}}
    assert recipes["large x AB"]["optim"] == {
        "learning_rate": 0.1, "momentum": 0.8, "schedule": "cosine", "clip_norm": 2,
    }  # fmt: skip
    assert recipes["small x ABCD"]["train"]["ema_decay"] == 0.98
    assert grid.overrides_field("optim.momentum")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name: decay", "name: fast", "factors: fast is listed more than once"),
        ("[fast, momentum, decay]", "[fast, moment]", "'moment': expected one of fast, momentum, decay; did you mean"),
        ("[fast, momentum, decay]", "[fast]", "fast and average have the same level in every run"),
        ("[optim.weight_decay=0.1]", "[train.epochs=3]", "factor decay changes nothing in row small"),
        ("optim.weight_decay=0.1", "optim.momentum=0.1", "momentum and decay both set optim.momentum"),
        ("optim.clip_norm=2", "optim.momentum=0.1", "row large sets optim.momentum, .* factor momentum"),
        ("factors:", "columns: [{name: none}]\nfactors:", "both columns and factors"),
    ],
)
def test_an_invalid_list_of_factors_is_refused_in_one_line(tmp_path, old, new, named):
    assert old in GRID
    with pytest.raises(ConfigError, match=named) as error:
        read_grid(write_grid(tmp_path, GRID.replace(old, new, 1)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("factors", "named"), [("", "neither columns nor factors"), ("f1", "got 1, expected 2 to 25")])
def test_a_grid_needs_columns_or_two_factors(tmp_path, factors, named):
    text = GRID[: GRID.index("factors:")] + ("factors: [{name: f1, overrides: [train.epochs=9]}]" if factors else "")
    with pytest.raises(ConfigError, match=named):
        read_grid(write_grid(tmp_path, text))


def test_status_explains_the_letters(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    lines = grid_command.status(grid, grid.jobs, tmp_path / "experiments").splitlines()
    assert len(lines) == 1 + len(grid.jobs) + 1
    assert lines[-1] == f"factors: {', '.join(LABELS)}"


# ---- effects -------------------------------------------------------------------------------------------------


def test_known_effects_are_recovered_from_scores():
    design = Design({"a": [], "b": [], "c": [], "d": ["a", "b", "c"]})
    effects = {"a": 0.03, "b": -0.02, "c": 0.0, "d": 0.01}
    rows = {"small": 0.4, "large": 0.6}
    scores = {
        (row, point): start + sum(effects[factor] for factor in high)
        for row, start in rows.items() for point, high in design.points.items()
    }  # fmt: skip
    noise = np.random.default_rng(0).normal(0, 0.004, (len(scores), 2000))
    replicates = np.array(list(scores.values()))[:, None] + noise
    contrasts = factor_contrasts(design, list(rows))
    found = [each.interval for each in assess_family(list(contrasts.values()), scores, replicates)]
    assert list(contrasts) == [f"{name} ({name.upper()})" for name in effects]
    for interval, effect in zip(found, effects.values(), strict=True):
        assert interval.estimate == pytest.approx(effect)
        assert interval.standard_error == pytest.approx(0.004 * math.sqrt(4 / 16), rel=0.1)  # as of 8 cells minus 8
        assert interval.low < effect < interval.high


class Runs:
    """The finished runs of the grid file."""

    def __init__(self, path: Path, experiments: Experiments) -> None:
        self.path, self.experiments = path, experiments
        low = {"learning_rate": 0.01, "momentum": 0.9, "schedule": "steps", "weight_decay": 0.0, "clip_norm": 5.0}
        grid, self.states = read_grid(path), {}
        for job in grid.jobs:
            high = grid.config.design.points[job.column]
            share = 0.3 + sum(EFFECTS[factor] for factor in high) * (job.row == "large")
            experiment, recipe = experiments.add(job.row, "fpn", job.seed, share), job.recipe()
            config = {"optim": low | recipe.get("optim", {}), "train": {"ema_decay": None} | recipe["train"]}
            (experiment / "config.yaml").write_text(json.dumps(config))
            self.states[job] = State("done", experiment)

    def compare(self, *missing: str) -> Comparison:
        """Compare the cells of the grid, without the runs of the cells in `missing`."""
        waiting, options = State("waiting"), {"baseline": None, "pairs": False, "replicates": 400, "force": False}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "ablation.cells.state_of", lambda job, _: waiting if job.cell in missing else self.states[job]
            )
            return compare([self.path], self.experiments.folder, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, new_experiments) -> Runs:
    return Runs(write_grid(tmp_path_factory.mktemp("grid")), new_experiments())


@pytest.fixture(scope="module")
def comparison(runs) -> Comparison:
    """Return the comparison of the grid. Read-only."""
    return runs.compare()


def test_main_effects_are_mean_differences_over_all_rows_and_in_each_row(comparison):
    mean = {place: cell.mean for place, cell in comparison.cells.items()}

    def effect(factor: str, rows: list[str]) -> float:
        sides = {True: [], False: []}
        for (row, point), score in mean.items():
            if row in rows:
                sides[factor in comparison.design.points[point]].append(score)
        return np.mean(sides[True]) - np.mean(sides[False])

    for family, rows in (
        (comparison.family("factor effect"), ["small", "large"]),
        (comparison.family("factor effect in small"), ["small"]),
        (comparison.family("factor effect in large"), ["large"]),
    ):
        assert [each.label for each in family] == LABELS
        assert [each.num_tests for each in family] == [4] * 4
        assert [each.interval.estimate for each in family] == pytest.approx([effect(name, rows) for name in EFFECTS])
    first = comparison.family("factor interaction")[0]
    assert first.label == "fast (A) on large - fast (A) on small"
    assert first.interval.estimate == pytest.approx(effect("fast", ["large"]) - effect("fast", ["small"]))


def test_only_the_factor_with_an_effect_is_significant_and_only_where_it_has_one(comparison):
    significant = [each.label for each in comparison.family("factor effect") if each.is_significant]
    assert significant == ["fast (A)"]
    assert [each.label for each in comparison.family("factor effect in large") if each.is_significant] == ["fast (A)"]
    assert [each.label for each in comparison.family("factor effect in small") if each.is_significant] == []
    depends = [each.label for each in comparison.family("factor interaction") if each.is_significant]
    assert depends == ["fast (A) on large - fast (A) on small"]
    conclusion = " ".join(conclusion_of(comparison))
    assert "main effects of the factors: 'fast (A)'" in conclusion
    assert "3 of 4 main effects of the factors" in conclusion
    assert comparison.family("column effect") == comparison.family("interaction") == []


@pytest.mark.parametrize("rows", [["large"], ["small", "large"]])
def test_main_effects_need_all_cells_and_the_missing_cells_are_listed(runs, rows):
    comparison = runs.compare(*(f"{row} x AB" for row in rows))
    (warning,) = [text for text in comparison.warnings if text.startswith("main effects")]
    assert all(f"{row} x AB" in warning for row in rows)
    assert not any(family.kind.startswith("factor effect in") for family in comparison.families)
    assert bool(comparison.family("factor effect")) == (rows == ["large"])
    assert ("(small)" in warning) == (rows == ["large"])


# ---- what is aliased -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("products", "facts"),
    [
        ({}, ["all 8 combinations of 3 factors"]),
        ({"d": "abc"}, ["resolution IV: 8 of the 16", "D = ABC", "3 or more factors: A = BCD; B = ACD", "AB = CD; "]),
        (
            {"d": "ab", "e": "ac", "f": "bc", "g": "abc"},
            ["resolution III", "2 or more factors: A = BD = CE = FG = BCG = ", "AB = CG = EF; "],
        ),
        ({"d": "", "e": "abcd"}, ["resolution V", "4 or more factors.", "aliased with each other: none"]),
    ],
)
def test_the_notes_name_the_resolution_and_the_aliases(products, facts):
    text = " ".join(design_notes(Design(dict.fromkeys("abc", "") | products)))
    assert [fact for fact in facts if fact not in text] == []


# ---- recipes -------------------------------------------------------------------------------------------------


def test_recipes_are_listed_by_factor_and_row(comparison):
    overrides = ["learning_rate=0.1", "momentum=0.8, optim.schedule=cosine", "weight_decay=0.1"]
    factors = [*(f"optim.{each}" for each in overrides), "train.ema_decay=0.98"]
    assert comparison.recipes == [*zip(LABELS, factors, strict=True), ("large", "optim.clip_norm=2")]


# ---- tables --------------------------------------------------------------------------------------------------


def test_the_score_table_has_a_line_per_design_point_that_marks_its_factors(comparison):
    table = score_table(comparison)
    assert table.header == ["", *LABELS, "small", "large"]
    assert [row[:5] for row in table.rows][1::6] == [["AD", "+", "", "", "+"], ["ABCD", "+", "+", "+", "+"]]
    ((i, j),) = table.bold
    assert table.rows[i][j].startswith(f"{comparison.best.mean:.4f}")


@pytest.mark.parametrize("form", ["md", "latex"])
def test_the_tables_lead_with_main_effects_and_say_what_is_aliased(comparison, form):
    text = as_text(comparison, Namespace(format=form, columns=(), per_class=False, errors=False))
    titles = [
        "Main effects of the factors, averaged over backbones", "Main effects of the factors, small only",
        "Main effects of the factors, large only", "Does the effect of a factor depend on the backbone?",
        "Differences",
    ]  # fmt: skip
    start = "### " if form == "md" else r"\caption{"
    places = [text.index(start + title) for title in titles]
    assert places == sorted(places)
    assert "A = BCD; B = ACD; C = ABD; D = ABC" in text
    assert "AB = CD; AC = BD; AD = BC" in text


def test_csv_has_the_level_of_every_factor(comparison):
    lines = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [line["factors"] for line in lines][:2] == ["none", "AD"]
    levels = [[line[f"factor_{name}"] for name in EFFECTS] for line in lines]
    assert levels[:2] == [["0"] * 4, ["1", "0", "0", "1"]]


def test_the_page_shows_main_effects_before_differences_and_what_is_aliased(comparison, tmp_path):
    write_report(tmp_path / "report.html", comparison)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sections_of(text)[:3] == ["scores", "effects", "differences"]
    assert "A = BCD; B = ACD" in text_of(text)
    assert "Which of the 4 factors raise mAP" in text_of(text)
    rows = ["".join(each.itertext()) for each in tree_of(text).iter("tr")]
    assert sum("optim.momentum=0.8, optim.schedule=cosine" in row for row in rows) == 1
