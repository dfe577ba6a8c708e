"""YAML without surprises: a reader that guesses at nothing, and the writer that goes with it.

PyYAML's dialect, YAML 1.1, reads `1e-4` as text, `neck: no` as False, `010` as 8 and `10:00:00` as 36000, and
of a key given twice it keeps the last. Here scalars follow the core schema of YAML 1.2 (yaml.org/spec/1.2.2,
section 10.3), a leading zero and a repeated key are mistakes, and tags, anchors and aliases are refused: a
file is plain data, and reading it runs no code.
"""

import difflib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engine.terminal import printable

MAX_BYTES = 100_000  # a data set's JSON is YAML too, and PyYAML would chew on it for minutes
MAX_DEPTH = 32

KeyPath = tuple[str | int, ...]  # ("model", "neck"); integers are positions in lists


class ConfigError(ValueError):
    """A config that cannot be used; str() is the whole report: the file, then every problem in it."""


NOWHERE, COMMAND_LINE = 0, sys.maxsize  # stand for the line of a field that is not in the file


class Problem(NamedTuple):
    """One line of the report."""

    line: int
    path: KeyPath
    message: str

    def __str__(self) -> str:
        place = {NOWHERE: "", COMMAND_LINE: "command line"}.get(self.line, f"line {self.line}")
        field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).lstrip(".")
        return ": ".join(filter(None, [", ".join(filter(None, [place, field])), self.message]))


def report(source: str | Path, problems: Sequence[Problem]) -> ConfigError:
    """All problems of a file as one error."""
    lines = [str(problem) for problem in sorted(problems, key=lambda problem: problem.line)]
    if len(lines) == 1:
        return ConfigError(f"{source}: {lines[0]}")
    return ConfigError("\n  ".join([f"{source}: {len(lines)} problems", *lines]))


# ---- reading ----------------------------------------------------------------------------------------------

_STR = "tag:yaml.org,2002:str"
_LEADING_ZERO = "leading zero"  # not a YAML tag: marks what must not be guessed at

# Tried in this order on unquoted scalars; what matches nothing is text. Digits are bounded because Python
# refuses to convert thousands of them.
_SCALARS = {
    "tag:yaml.org,2002:null": r"~|null|Null|NULL|",
    "tag:yaml.org,2002:bool": r"true|True|TRUE|false|False|FALSE",
    _LEADING_ZERO: r"[-+]?0[0-9]+",
    "tag:yaml.org,2002:int": r"[-+]?[0-9]{1,100}|0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}",
    "tag:yaml.org,2002:float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _StrictLoader(yaml.SafeLoader):
    """YAML into plain data; notes the line of every key, collects problems rather than stop at the first."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  (PyYAML's own protocol; filled below)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        refusal = None
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            refusal = "anchors and aliases (& and *) are not allowed; write the value out, or quote the text"
        elif event.tag is not None:
            refusal = f"tag {event.tag!r} is not allowed; a config is plain data"
        elif self._depth == MAX_DEPTH:
            refusal = f"nested more than {MAX_DEPTH} deep"
        if refusal:
            raise yaml.composer.ComposerError(None, None, refusal, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def plain_data(self, node: yaml.Node, path: KeyPath = ()) -> Any:
        """dict, list, str, int, float, bool or None."""
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain_data(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag == _LEADING_ZERO:
            sign, digits = re.fullmatch(r"([-+]?)0+(\d+)", node.value).groups()
            cure = f"a leading zero is ambiguous; write {sign}{digits} or '{node.value}'"
            self.problems.append(Problem(line, path, f"got {node.value}, {cure}"))
            return node.value
        return self.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag != _STR:  # `1:`, `true:`, `[a, b]:`
                text = f"key {key_node.value}" if isinstance(key_node, yaml.ScalarNode) else "this key"
                self.problems.append(Problem(line, path, f"{text} is not text; put it in quotes"))
                continue
            key_path = (*path, key_node.value)
            if key_node.value in data:
                message = f"given twice, first on line {self.lines[key_path]}"
                self.problems.append(Problem(line, key_path, message))
                continue
            self.lines[key_path] = line
            data[key_node.value] = self.plain_data(value_node, key_path)
        return data


for _tag, _pattern in _SCALARS.items():
    _StrictLoader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)


def _parse(text: str, wanted: str) -> tuple[Any, dict[KeyPath, int], list[Problem]]:
    """The data, the line of each key, and the problems found on the way (data then holds stand-ins)."""
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        message = ", ".join(filter(None, [error.context, error.problem]))
        return None, {}, [Problem(error.problem_mark.line + 1, (), message)]
    except (ValueError, OverflowError) as error:  # of an escape such as "\\U00110000"
        return None, {}, [Problem(NOWHERE, (), f"an escape that stands for no character: {error}")]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return None, {}, [Problem(line, (), f"character #x{error.character:04x} is not allowed")]
    if node is None:
        return None, {}, [Problem(NOWHERE, (), f"empty, expected {wanted}")]
    return loader.plain_data(node), loader.lines, loader.problems


def read_mapping(path: str | Path) -> tuple[dict[str, Any], dict[KeyPath, int], list[Problem]]:
    """What _parse makes of a file; raises ConfigError where there is no mapping to go on with."""
    path = Path(path)
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: this is a folder, expected a YAML file")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{path}: {path.stat().st_size / 1e3:.0f} kB, expected a config below {MAX_BYTES // 1000} kB"
            )
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise missing_file(path) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, see byte {error.start}; expected a YAML file") from None

    wanted = "lines of `name: value`"
    data, lines, problems = _parse(text, wanted)
    if not isinstance(data, dict):
        raise report(path, problems or [Problem(NOWHERE, (), f"got {shown(data)}, expected {wanted}")])
    return data, lines, problems


def missing_file(path: Path) -> ConfigError:
    """Return the error for a file that is not there, with the nearest name in its folder."""
    near = nearest(path.stem, [file.stem for file in path.parent.glob("*.yaml")])
    cure = did_you_mean(path.with_name(f"{stem}.yaml") for stem in near)
    where = "" if path.is_absolute() else f", relative to {Path.cwd()}"
    return ConfigError(f"{path}: no such file{cure or where}")


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Read a YAML file whose top level is a mapping, by the strict rules at the top of this module.

    Returns the data (dict, list, str, int, float, bool, None) and the line of every key path in it, such as
    {("model", "neck"): 12}.
    Raises ConfigError with every problem found; broken syntax ends the search at its first.
    """
    data, lines, problems = read_mapping(path)
    if problems:
        raise report(path, problems)
    return data, lines


def read_value(text: str) -> Any:
    """Read one value as the strict reader would in a file: '1e-4' is a float, '[1, 2]' a list, 'no' is text.

    Raises ValueError saying why it cannot be read.
    """
    data, _, problems = _parse(text, "a value, or null for none")
    if problems:
        raise ValueError(problems[0].message)
    return data


# ---- writing ----------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else; keeps a list of scalars on one line."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a value that stands in two places is written twice, not as an alias

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Between single quotes, YAML folds Unicode's line breaks into others.
        return self.represent_scalar(_STR, data, style=None if data.isprintable() else '"')

    def represent_list(self, data: list) -> yaml.SequenceNode:
        inline = not any(isinstance(item, dict | list) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=inline)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_representer(list, _Dumper.represent_list)
for _tag, _pattern in _SCALARS.items():
    _Dumper.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)


def dump_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML that `read_yaml` reads back to equal data, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, default_flow_style=False, sort_keys=False, allow_unicode=True, width=110)


# ---- words for reports ------------------------------------------------------------------------------------

DID_YOU_MEAN = "did you mean"


def nearest(word: Any, choices: Iterable[Any]) -> list[str]:
    """The one choice that is spelled most like word, whatever the case; none if none is close."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    return [by_lower[near] for near in difflib.get_close_matches(str(word).lower(), by_lower, n=1)]


def did_you_mean(names: Iterable[Any]) -> str:
    names = [f"'{name}'" for name in names]
    return f"; {DID_YOU_MEAN} {' or '.join(names)}?" if names else ""


def shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first few names in one line, fit for a terminal."""
    return ", ".join(map(printable, names[:most])) + ", ..." * (len(names) > most)
