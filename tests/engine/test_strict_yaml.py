"""engine/strict_yaml.py: YAML 1.2, line numbers of keys, and errors."""

from pathlib import Path

import pytest

from engine.strict_yaml import ConfigError, read_value, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("5E-4", 5e-4), ("1.", 1.0), (".5", 0.5), ("-.5e+2", -50.0), (".inf", float("inf")),
        ("0", 0), ("-3", -3), ("0x1f", 31), ("0o17", 15), ("010", 10),
        ("true", True), ("FALSE", False), ("null", None), ("~", None),
        ("[0.05, 1e-1, no, [1]]", [0.05, 0.1, "no", [1]]), ("{a: 1, b: {c: null}}", {"a": 1, "b": {"c": None}}),
        *((text, text) for text in ("no", "yes", "on", "y", "tRUE", "10:00:00", "2024-01-31", "<<", "=", "1e")),
        *((f"'{text}'", text) for text in ("010", "1e-4", "true", "null", "")),
    ],
)  # fmt: skip
def test_a_value_is_parsed_as_yaml_1_2(text, value):
    parsed = read_value(text)
    assert (type(parsed), parsed) == (type(value), value)


def test_a_file_is_read_with_the_line_of_every_key(write):
    data, lines = read_yaml(write("# why\nmodel:\n  neck: Mäuse 鼠\n\n  heads: [{a: 1}]\nseed: 3\n"))
    assert data == {"model": {"neck": "Mäuse 鼠", "heads": [{"a": 1}]}, "seed": 3}
    assert lines == {
        ("model",): 2, ("model", "neck"): 3, ("model", "heads"): 5, ("model", "heads", 0, "a"): 5, ("seed",): 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("- 1\n- 2\n", r"got \[1, 2\], expected lines of `name: value`"),
        ("train:\n  epochs: 1\n  lr: 2\n  epochs: 3\n", 'line 4: .*duplicate key "epochs"'),
        ("a: 1\nb: [1, 2\n", "line 3: .*expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "line 2: expected a single document"),
        ("a: 1\nb: \x07\n", "character #x0007"),
        ("a: !!python/object/apply:os.mkdir [pwned]\n", "line 1: .*tag .*python/object/apply:os.mkdir'"),
        ("a: &x [*x]\n", "line 1: anchors and aliases"),
        ("a: " + "[" * 1000 + "]" * 1000 + "\n", "recursion"),
        ("a: 1\ntrue: 1\n", "line 2: this key is not text"),
    ],
)
def test_a_file_that_is_not_a_config_is_an_error(write, monkeypatch, tmp_path, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(write(text))
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.yaml"]  # no code ran


def test_a_missing_file_is_reported_with_the_folder_or_a_similar_name(monkeypatch, write, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^configs/a\.yaml: no such file, relative to {tmp_path}$"):
        read_yaml(Path("configs/a.yaml"))
    path = write("a: 1\n").rename(tmp_path / "quickstart.yaml")
    with pytest.raises(ConfigError, match=rf"quikstart.yaml: no such file; did you mean '{path}'\?"):
        read_yaml(tmp_path / "quikstart.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "cannot be read as a YAML file: .*Is a directory"),
        ("model.pt", "cannot be read as a YAML file: .*utf-8"),
        ("instances.json", "3000 kB, expected .* 100 kB"),
    ],
)
def test_a_folder_a_binary_file_and_a_huge_file_are_errors(tmp_path, name, message):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04\xff\xfe")
    (tmp_path / "instances.json").write_text('{"a": [' + "1, " * 1_000_000 + "1]}")
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / name)
