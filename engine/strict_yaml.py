"""Read YAML 1.2 as plain data with the line number of every key, and write it (with ruamel.yaml).

`1e-4` is a number; `no`, `10:00:00` and `2024-01-31` are text. Duplicate keys, keys that are not text, anchors (which
could expand to fill the memory) and object tags (which could run code) are errors.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from engine.text import did_you_mean, nearest, shown

MAX_BYTES = 100_000  # an annotation file in JSON is valid YAML, too, but would take minutes to parse
TAG = "tag:yaml.org,2002:"

KeyPath = tuple[str | int, ...]  # ("model", "neck"); integers are list indices


class ConfigError(ValueError):
    """An invalid config; the message names the file and every problem in it."""


class UnreadableError(ValueError):
    """Raised for text that is not YAML of this kind. line: line number, from 1; None if unknown."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line = line


# ---- reading ----------------------------------------------------------------------------------------------


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Read a YAML file whose top level is a mapping.

    Returns the data (dict, list, str, int, float, bool, None) and the line of every key, such as
    {("model", "neck"): 12}. Raises ConfigError if the file is missing or invalid."""
    path = Path(path)
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{path}: {size / 1e3:.0f} kB, expected a config of at most {MAX_BYTES // 1000} kB")
        data, lines = _parse(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML file: {error}") from None
    except UnreadableError as error:
        raise ConfigError(f"{path}: {f'line {error.line}: ' if error.line else ''}{error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: got {shown(data)}, expected lines of `name: value`")
    return data, lines


def read_value(text: str) -> Any:
    """Parse one YAML value: '1e-4' is a float, '[1, 2]' a list, 'no' text. Raises UnreadableError if it is invalid."""
    return _parse(text)[0]


def missing_file(path: Path) -> ConfigError:
    """Return the error for a file that does not exist. It suggests a similar name in the same folder."""
    near = nearest(path.stem, [file.stem for file in path.parent.glob("*.yaml")])
    cure = did_you_mean(path.with_name(f"{stem}.yaml") for stem in near)
    where = "" if path.is_absolute() else f", relative to {Path.cwd()}"
    return ConfigError(f"{path}: no such file{cure or where}")


def _parse(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the data and the line of each key. Raises UnreadableError if the text is invalid."""
    yaml = YAML(typ="safe", pure=True)
    try:
        if (node := yaml.compose(text)) is None:
            raise UnreadableError(None, "empty, expected a value, or null for no value")
        lines = dict(_key_lines(node, ()))
        return yaml.constructor.construct_document(node), lines
    except MarkedYAMLError as error:
        message = ", ".join(filter(None, [error.context, error.problem]))
        raise UnreadableError(error.problem_mark.line + 1, message) from None
    except UnreadableError:
        raise
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:  # control character, huge number, nesting
        raise UnreadableError(None, str(error).splitlines()[0]) from None


def _key_lines(node: Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """Yield the path and line of every key below a node; turn dates, `<<` and `=` into text."""
    if node.anchor:
        raise UnreadableError(
            node.start_mark.line + 1, "anchors and aliases are not allowed; put text with & or * in quotes"
        )
    if isinstance(node, ScalarNode):
        if node.tag in (f"{TAG}timestamp", f"{TAG}value", f"{TAG}merge"):
            node.tag = f"{TAG}str"
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            if key.tag != f"{TAG}str":  # `1:`, `true:`, `[a, b]:`
                raise UnreadableError(key.start_mark.line + 1, "this key is not text; put it in quotes")
            yield (*path, key.value), key.start_mark.line + 1
            yield from _key_lines(value, (*path, key.value))
    else:
        for position, item in enumerate(node.value):
            yield from _key_lines(item, (*path, position))


# ---- writing ----------------------------------------------------------------------------------------------


class _Representer(SafeRepresenter):
    """Representer without aliases that writes lists of scalars on one line and escapes unprintable text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: list) -> Node:
        inline = not any(isinstance(item, dict | list) for item in data)
        return self.represent_sequence(f"{TAG}seq", data, flow_style=inline)

    def represent_str(self, data: str) -> Node:
        return self.represent_scalar(f"{TAG}str", data, style=None if data.isprintable() else '"')


_Representer.add_representer(list, _Representer.represent_list)
_Representer.add_representer(str, _Representer.represent_str)


def dump_yaml(data: dict[str, Any]) -> str:
    """Return plain data as YAML, with keys in their given order. `read_yaml` returns equal data."""
    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.Representer = _Representer
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output, yaml.width = False, False, 1 << 20
    yaml.dump(data, stream)
    return stream.getvalue()
