"""Typed configuration: a frozen base class, and one error that reports all problems of a file and its overrides.

A config class derives from `Config` and is defined beside the code that it configures. `load_config` reads it from a
YAML file and overrides of the command line. `dump_config` returns YAML that loads to an equal config.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.strict_yaml import ConfigError, KeyPath, dump_yaml, read_value, read_yaml
from engine.text import did_you_mean, nearest, shown


class Config(BaseModel):
    """Base class of configs: frozen, no unknown fields, strict types (8 is a valid float, 8.0 is an invalid int)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


ConfigClass = TypeVar("ConfigClass", bound=Config)
Problem = tuple[int, KeyPath, str]  # line, path of the field, message
NOWHERE, COMMAND_LINE = 0, 1 << 62  # line numbers of fields that are not in the file
MIN_UNKNOWN = 4  # with so many unknown fields, a file is probably a config of a different command
EXPECTED = {  # from type of pydantic error to message; all other types keep pydantic's message
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "tuple_type": "should be a list",
    "model_type": "should be a section of fields",
}


def load_config(path: str | Path, overrides: Sequence[str], cls: type[ConfigClass]) -> ConfigClass:
    """Read a config file, apply the command line's overrides, and validate the result.

    overrides: `section.field=value`, with a value in YAML: `model.neck=fpn`, `train.milestones=[43, 54]`.
    Raises ConfigError, which lists line, dotted name, value and expected value of every invalid field. If many fields
    are unknown, the error only says that the file is a config of a different command."""
    data, lines = read_yaml(path)
    problems = _override(data, lines, overrides)
    try:
        # Validate JSON, because a strict tuple field accepts a JSON list, but not the Python list that YAML gives.
        config = cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        details = error.errors(include_url=False)
        paths = [detail["loc"] for detail in details if detail["type"] == "extra_forbidden"]
        unknown = [".".join(map(str, path)) for path in paths if lines[path] != COMMAND_LINE]
        if len(unknown) >= MIN_UNKNOWN:
            raise ConfigError(
                f"{path}: a config of a different command: {cls.__name__} has no {', '.join(unknown[:MIN_UNKNOWN])}; "
                "see the first lines of the file, or the README.md of its experiment, for the command"
            ) from None
        problems += [_explain(detail, lines, cls) for detail in details]
    if problems:
        raise _report(path, problems)
    return config


def read_overridden(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the content of a config file with overrides applied, as plain data that is not validated.

    Raises ConfigError if the file cannot be read, or an override cannot be applied."""
    data, lines = read_yaml(path)
    if problems := _override(data, lines, overrides):
        raise _report(path, problems)
    return data


def _override(data: dict[str, Any], lines: dict[KeyPath, int], overrides: Sequence[str]) -> list[Problem]:
    """Apply the overrides to `data` and `lines` in place; return the problems of invalid overrides."""
    problems: list[Problem] = []
    names = [override.partition("=")[0] for override in overrides]
    for index, override in enumerate(overrides):
        name, equals, text = override.partition("=")
        path = tuple(name.split("."))
        try:
            if not equals or not all(path):
                raise ValueError(f"got {override!r}, expected section.field=value")
            if name in names[:index]:
                raise ValueError("given twice")
            _set(data, lines, path, read_value(text))
        except ValueError as error:
            problems.append((COMMAND_LINE, path if equals else (), str(error)))
    return problems


def _set(data: dict[str, Any], lines: dict[KeyPath, int], path: tuple[str, ...], value: Any) -> None:
    """Set the value at `path` in place, with COMMAND_LINE as its line; create missing sections.

    Raises ValueError if a parent key of `path` is in the file but is not a section."""
    for depth, key in enumerate(path[:-1], start=1):
        if data.get(key) is None:  # missing, or an optional section that is null
            data[key] = {}
            lines[path[:depth]] = COMMAND_LINE
        data = data[key]
        if not isinstance(data, dict):
            raise ValueError(f"{'.'.join(path[:depth])} is {shown(data)} and has no fields")
    data[path[-1]] = value
    for below in [key_path for key_path in lines if key_path[: len(path)] == path]:
        del lines[below]
    lines[path] = COMMAND_LINE


# ---- reporting problems ------------------------------------------------------------------------------------


def _report(source: str | Path, problems: list[Problem]) -> ConfigError:
    """Return one error that lists all problems of a file, sorted by line."""
    texts = []
    for line, path, message in sorted(problems, key=lambda problem: problem[0]):
        place = {NOWHERE: "", COMMAND_LINE: "command line"}.get(line, f"line {line}")
        field = ", ".join(filter(None, [place, ".".join(map(str, path))]))
        texts.append(f"{field}: {message}" if field else message)
    return ConfigError(
        f"{source}: " + (texts[0] if len(texts) == 1 else "\n  ".join([f"{len(texts)} problems", *texts]))
    )


def _explain(detail: dict[str, Any], lines: dict[KeyPath, int], cls: type[Config]) -> Problem:
    """Convert a pydantic error to a `Problem`."""
    path, value, cause = detail["loc"], detail["input"], detail.get("ctx", {}).get("error")
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), NOWHERE)
    if detail["type"] == "missing":
        return line, path, "missing"
    if detail["type"] == "extra_forbidden":
        near, siblings = _suggest(path, cls)
        return line, path, "no such field" + (did_you_mean(near) or f"; expected one of {', '.join(siblings)}")
    if cause and (isinstance(value, dict) or shown(value) in str(cause)):
        return line, path, str(cause)
    expected = str(cause or EXPECTED.get(detail["type"]) or detail["msg"].removeprefix("Input "))
    return line, path, f"got {shown(value)}, {expected}"


def _suggest(path: KeyPath, cls: type[Config]) -> tuple[list[str], list[str]]:
    """Return known fields with a name similar to an unknown field's, and all fields in the section of that field."""
    *above, name = (key for key in path if isinstance(key, str))
    fields = [(*section, field) for section, nested in sections(cls) for field in nested.model_fields]
    siblings = [field[-1] for field in fields if field[:-1] == tuple(above)]
    anywhere = nearest(name, [field[-1] for field in fields])
    return nearest(name, siblings) or [".".join(field) for field in fields if field[-1] in anywhere], siblings


def sections(cls: type[Config], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[Config]]]:
    """Yield (path, class) for a config class and all config classes nested in it, in the order of declaration."""
    yield path, cls
    for name, field in cls.model_fields.items():
        if nested := nested_class(field.annotation):
            yield from sections(nested, (*path, name))


def nested_class(annotation: Any) -> type[Config] | None:
    """Return the config class in a field's type annotation, even if inside Optional or tuple; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next(filter(None, map(nested_class, get_args(annotation))), None)


# ---- writing and comparing ---------------------------------------------------------------------------------


def dump_config(config: Config) -> str:
    """Return the config as YAML, with fields in the order of declaration. It loads to an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def changed_fields(before: Config, after: Config) -> dict[str, str]:
    """Return the differences between two configs, such as {"train.epochs": "train.epochs was 3, is 5"}."""
    return changed_values(before.model_dump(mode="json"), after.model_dump(mode="json"))


def changed_values(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """Return the differences between two nested dicts, as in `changed_fields`. Missing values count as null."""
    old, new = dict(leaves(before)), dict(leaves(after))
    return {
        name: f"{name} was {shown(old.get(name))}, is {shown(new.get(name))}"
        for name in old | new
        if old.get(name) != new.get(name)
    }


def leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every value in a nested dict."""
    if not isinstance(data, dict):
        yield name, data
        return
    for key, value in data.items():
        yield from leaves(value, f"{name}.{key}".lstrip("."))
