"""Two-level factorial designs: points, defining relation and aliases, against brute force and textbooks."""

from itertools import combinations
from math import prod

import pytest

from stats.factorial import Design

# Word in letters -> product_of of the factors A, B, ...
DESIGNS = {
    "2^2": ["", ""],
    "2^(3-1)": ["", "", "AB"],
    "2^(5-1)": ["", "", "", "", "ABCD"],
    "2^(6-2)": ["", "", "", "", "ABC", "BCD"],
    "2^(7-3)": ["", "", "", "", "ABC", "BCD", "ACD"],
    "2^(7-4)": ["", "", "", "AB", "AC", "BC", "ABC"],
    "2^(5-2), products first": ["DE", "CD", "", "", ""],
}


def design_of(products: list[str]) -> Design:
    names = [f"factor {letter}" for letter in "ABCDEFG"[: len(products)]]
    factors = {name: [f"factor {letter}" for letter in each] for name, each in zip(names, products, strict=True)}
    return Design(factors)


def each_design(test):
    designs = [pytest.param(design_of(products), id=name) for name, products in DESIGNS.items()]
    return pytest.mark.parametrize("design", designs)(test)


def column(design: Design, effect: frozenset[str]) -> tuple[int, ...]:
    """Return the column of an effect in the design's sign matrix: -1 or 1 for each point."""
    return tuple(prod(1 if name in high else -1 for name in effect) for high in design.points.values())


def all_effects(design: Design) -> list[frozenset[str]]:
    sizes = range(1, len(design.factors) + 1)
    return [frozenset(each) for size in sizes for each in combinations(design.factors, size)]


@each_design
def test_points_are_distinct_and_every_factor_is_high_in_half_of_them(design):
    assert len(design.points) == len(set(design.points.values())) == 2 ** len(design.crossed)
    assert all(sum(column(design, frozenset([name]))) == 0 for name in design.factors)
    assert all(sum(column(design, frozenset(pair))) == 0 for pair in combinations(design.factors, 2))  # orthogonal


@each_design
def test_the_defining_relation_has_the_effects_whose_column_is_all_ones(design):
    assert {*design.relation} == {each for each in all_effects(design) if {*column(design, each)} == {1}}


@each_design
def test_two_effects_are_aliased_if_their_columns_are_equal(design):
    for effect in all_effects(design):
        same = {each for each in all_effects(design) if column(design, each) == column(design, effect)}
        assert {*design.aliases(effect)} - {frozenset()} == same - {effect}


@each_design
def test_alias_groups_are_the_sets_of_equal_columns(design):
    columns: dict[tuple[int, ...], set] = {}
    for pair in map(frozenset, combinations(design.factors, 2)):
        columns.setdefault(column(design, pair), set()).add(pair)
    expected = {frozenset(group) for group in columns.values() if len(group) > 1}
    assert {frozenset(group) for group in design.alias_groups(2)} == expected


@pytest.mark.parametrize(
    ("name", "relation", "resolution", "pairs"),
    [  # Montgomery, Design and Analysis of Experiments, sections 8.2 to 8.5
        ("2^2", "", None, ""),
        ("2^(5-1)", "ABCDE", 5, ""),
        ("2^(6-2)", "ABCE ADEF BCDF", 4, "AB=CE AC=BE AD=EF AE=BC=DF AF=DE BD=CF BF=CD"),
        (
            "2^(7-4)",
            "ABD ACE AFG BCF BEG CDG DEF ABCG ABEF ACDF ADEG BCDE BDFG CEFG ABCDEFG",
            3,
            "AB=CG=EF AC=BG=DF AD=CF=EG AE=BF=DG AF=BE=CD AG=BC=DE BD=CE=FG",
        ),
    ],
)
def test_relation_resolution_and_aliases_equal_those_of_a_textbook(name, relation, resolution, pairs):
    design = design_of(DESIGNS[name])
    assert (" ".join(map(design.letters, design.relation)), design.resolution) == (relation, resolution)
    assert " ".join("=".join(map(design.letters, group)) for group in design.alias_groups(2)) == pairs


def test_points_have_the_letters_of_their_factors_in_standard_order():
    assert list(design_of(["", "", "AB"]).points) == ["C", "A", "B", "ABC"]
    design = design_of(["", "", "", "ABC"])
    assert list(design.points) == ["none", "AD", "BD", "AB", "CD", "AC", "BC", "ABCD"]
    assert design.label("factor D") == "factor D (D)"


@pytest.mark.parametrize(
    ("factors", "named"),
    [
        ({"a": ""}, "factors: got 1, expected 2 to 25"),
        ({"a": "", "b": "", "c": "ax"}, "factor c: product_of: crossed factor 'x': expected one of a, b"),
        ({"a": "", "b": "", "c": "ab", "d": "ac"}, "factor d: product_of: crossed factor 'c'"),
        ({"a": "", "b": "", "c": "aab"}, "factor c: product_of lists a more than once"),
        ({"a": "", "b": "", "c": "ab", "d": "ab"}, "c and d have the same level in every run"),
        ({"a": "", "b": "", "c": "a"}, "a and c have the same level in every run"),
    ],
)
def test_an_invalid_design_is_refused(factors, named):
    with pytest.raises(ValueError, match=named):
        Design(factors)
