"""YAML is read as it is written, and what could mean two things is refused."""

from pathlib import Path

import pytest

from engine.strict_yaml import ConfigError, read_value, read_yaml

# ---- what scalars mean -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-4", 1e-4),
        ("5E-4", 5e-4),
        ("1.e3", 1000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-.5e+2", -50.0),
        ("1.", 1.0),
        ("0.0", 0.0),
        (".inf", float("inf")),
    ],
)
def test_floats(text, number):
    value = read_value(text)
    assert type(value) is float
    assert value == number


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("10", 10), ("-3", -3), ("+3", 3), ("0x1f", 31), ("0o17", 15)])
def test_integers(text, number):
    value = read_value(text)
    assert type(value) is int
    assert value == number


@pytest.mark.parametrize("text", ["true", "True", "TRUE"])
def test_true(text):
    assert read_value(text) is True


@pytest.mark.parametrize("text", ["false", "False", "FALSE"])
def test_false(text):
    assert read_value(text) is False


@pytest.mark.parametrize("text", ["null", "Null", "NULL", "~"])
def test_null(text):
    assert read_value(text) is None


@pytest.mark.parametrize(
    "text",
    ["no", "yes", "on", "off", "y", "N", "No", "tRUE", "10:00:00", "1_000", "0b1", "2024-01-31", "<<", "=", "1e", "e5"],
)
def test_what_only_yaml_1_1_would_convert_stays_text(text):
    assert read_value(text) == text


@pytest.mark.parametrize("text", ["'010'", '"1e-4"', "'true'", "'null'", "''"])
def test_quotes_make_text(text):
    assert read_value(text) == text[1:-1]


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("010", "write 10 or '010'"),
        ("-007", "write -7 or '-007'"),
        ("08", "write 8 or '08'"),
        ("00", "write 0 or '00'"),
    ],
)
def test_a_leading_zero_is_a_mistake(text, cure):
    with pytest.raises(ValueError, match=cure):
        read_value(text)


def test_lists_and_mappings():
    assert read_value("[0.05, 1e-1, no, [1]]") == [0.05, 0.1, "no", [1]]
    assert read_value("{a: 1, b: {c: null}}") == {"a": 1, "b": {"c": None}}


# ---- files -------------------------------------------------------------------------------------------------


def test_a_file_comes_with_the_line_of_every_key(write):
    data, lines = read_yaml(write("# why\nmodel:\n  neck: fpn\n\n  heads: [{a: 1}]\nseed: 3\n"))
    assert data == {"model": {"neck": "fpn", "heads": [{"a": 1}]}, "seed": 3}
    assert lines == {
        ("model",): 2, ("model", "neck"): 3, ("model", "heads"): 5, ("model", "heads", 0, "a"): 5, ("seed",): 6,
    }  # fmt: skip


def test_unicode_is_read(write):
    assert read_yaml(write("name: Mäuse 鼠\n"))[0] == {"name": "Mäuse 鼠"}


def test_a_key_given_twice_is_reported_with_both_lines(write):
    path = write("train:\n  epochs: 1\n  lr: 2\n  epochs: 3\n")
    with pytest.raises(ConfigError, match=r"line 4, train.epochs: given twice, first on line 2$"):
        read_yaml(path)


def test_all_mistakes_of_a_file_are_reported_at_once(write):
    path = write("a: 010\nb: 1\nb: 2\n3: x\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).splitlines() == [
        f"{path}: 3 problems",
        "  line 1, a: got 010, a leading zero is ambiguous; write 10 or '010'",
        "  line 3, b: given twice, first on line 2",
        "  line 4: key 3 is not text; put it in quotes",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("- 1\n- 2\n", r"got \[1, 2\], expected lines of `name: value`"),
        ("just text\n", "got 'just text', expected lines of `name: value`"),
        ("a: 1\nb: [1, 2\n", "line 3: .*expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "line 2: .*cannot start any token"),
        ("a: b: c\n", "line 1: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "line 2: expected a single document"),
        ("a: 1\nb: \x07\n", "line 2: character #x0007 is not allowed"),
        ("a: !!python/object/apply:os.mkdir [pwned]\n", "line 1: tag .*python/object/apply:os.mkdir' is not allowed"),
        ("a: !!int '3'\n", "line 1: tag .* is not allowed"),
        ("a: ! 3\n", "line 1: tag '!' is not allowed"),
        ("a: &x [*x]\n", "line 1: anchors and aliases"),
        ("a: 1\nb: *a\n", "line 2: anchors and aliases"),
        ("a: " + "[" * 1000 + "]" * 1000 + "\n", "line 1: nested more than 32 deep"),
        ("a: " + "{b: " * 1000 + "}" * 1000 + "\n", "line 1: nested more than 32 deep"),
        ("[a, b]: 1\n", "line 1: this key is not text"),
        ("true: 1\n", "line 1: key true is not text"),
    ],
)
def test_a_file_that_is_no_config_is_refused(write, monkeypatch, tmp_path, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(write(text))
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.yaml"]  # no code ran


def test_a_missing_file_with_a_relative_name_is_told_with_the_folder_that_one_is_in(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^configs/a\.yaml: no such file, relative to {tmp_path}$"):
        read_yaml(Path("configs/a.yaml"))


def test_a_missing_file_is_named_with_the_nearest_there_is(write):
    path = write("a: 1\n").rename(write("").with_name("quickstart.yaml"))
    with pytest.raises(ConfigError, match=r"quikstart.yaml: no such file; did you mean '.*/quickstart.yaml'\?"):
        read_yaml(path.with_name("quikstart.yaml"))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="this is a folder, expected a YAML file"):
        read_yaml(tmp_path)


def test_a_file_within_a_file_is_refused(write):
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        read_yaml(write("a: 1\n") / "x.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ConfigError, match=r"model\.pt: not UTF-8 text, see byte 4"):
        read_yaml(tmp_path / "model.pt")


def test_a_data_set_given_for_a_config_is_refused_before_it_is_parsed(tmp_path):
    (tmp_path / "instances.json").write_text('{"a": [' + "1, " * 1_000_000 + "1]}")
    with pytest.raises(ConfigError, match="3000 kB, expected a config below 100 kB"):
        read_yaml(tmp_path / "instances.json")
