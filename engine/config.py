"""Typed configuration: a frozen base class, and one report of all that is wrong with a file and its overrides.

A config class derives from `Config` and lives beside what it configures. `load_config` reads a YAML file and the
command line's overrides into it; `dump_config` writes it back as a file that loads to an equal object.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.strict_yaml import ConfigError, KeyPath, dump_yaml, read_value, read_yaml
from engine.text import UnknownNameError, did_you_mean, nearest, shown


class Config(BaseModel):
    """Base of every config: frozen, no unknown fields, strict (8 will do for 8.0, but '8' or 8.0 not for 8)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


ConfigClass = TypeVar("ConfigClass", bound=Config)
Problem = tuple[int, KeyPath, str]  # line, field, what is wrong with it
NOWHERE, COMMAND_LINE = 0, 1 << 62  # in place of the line of a field that is not in the file
FEWEST_UNKNOWN = 4  # unknown fields in a file that was meant for another command
WANTED = {  # by pydantic's type of error; the other types have words for users
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "tuple_type": "should be a list",
    "model_type": "should be a section of fields",
}


def load_config(path: str | Path, overrides: Sequence[str], cls: type[ConfigClass]) -> ConfigClass:
    """Read a config file, lay the command line's overrides over it, and validate the whole.

    overrides: `section.field=value` each, the value in YAML: `model.neck=fpn`, `train.milestones=[43, 54]`.
    Raises ConfigError: every bad field with its line, its dotted name, the value got and the value wanted; or one
    sentence, if the file was meant for another command."""
    data, lines = read_yaml(path)
    problems = _override(data, lines, overrides)
    try:
        # By way of JSON: strict there still takes a list for a tuple, and a list is all that YAML has.
        config = cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        details = error.errors(include_url=False)
        paths = [detail["loc"] for detail in details if detail["type"] == "extra_forbidden"]
        unknown = [".".join(map(str, path)) for path in paths if lines[path] != COMMAND_LINE]
        if len(unknown) >= FEWEST_UNKNOWN:
            raise ConfigError(
                f"{path}: a config of another kind: a {cls.__name__} has no {', '.join(unknown[:FEWEST_UNKNOWN])}; its "
                "first lines, or the README.md of its experiment, say for which command it is"
            ) from None
        problems += [_explain(detail, lines, cls) for detail in details]
    if problems:
        raise _report(path, problems)
    return config


def read_overridden(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a config file with overrides laid over it, as plain data that nobody has validated.

    Raises ConfigError if the file cannot be read, or an override cannot be laid over it."""
    data, lines = read_yaml(path)
    if problems := _override(data, lines, overrides):
        raise _report(path, problems)
    return data


def _override(data: dict[str, Any], lines: dict[KeyPath, int], overrides: Sequence[str]) -> list[Problem]:
    """Write the overrides into data and lines; return what is wrong with the rest."""
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
    """Put value at path as coming from the command line; make the sections above it.

    Raises ValueError if one of those is in the file and is not a section."""
    for depth, key in enumerate(path[:-1], start=1):
        if data.get(key) is None:  # absent, or an optional section that was null
            data[key] = {}
            lines[path[:depth]] = COMMAND_LINE
        data = data[key]
        if not isinstance(data, dict):
            raise ValueError(f"{'.'.join(path[:depth])} is {shown(data)} and has no fields")
    data[path[-1]] = value
    for below in [key_path for key_path in lines if key_path[: len(path)] == path]:
        del lines[below]
    lines[path] = COMMAND_LINE


# ---- explaining what is wrong ------------------------------------------------------------------------------


def _report(source: str | Path, problems: list[Problem]) -> ConfigError:
    """Return all problems of a file as one error, in the order of their lines."""
    texts = []
    for line, path, message in sorted(problems, key=lambda problem: problem[0]):
        place = {NOWHERE: "", COMMAND_LINE: "command line"}.get(line, f"line {line}")
        field = ", ".join(filter(None, [place, ".".join(map(str, path))]))
        texts.append(f"{field}: {message}" if field else message)
    return ConfigError(
        f"{source}: " + (texts[0] if len(texts) == 1 else "\n  ".join([f"{len(texts)} problems", *texts]))
    )


def _explain(detail: dict[str, Any], lines: dict[KeyPath, int], cls: type[Config]) -> Problem:
    """Return what pydantic found wrong with a field, with its line."""
    path, value, cause = detail["loc"], detail["input"], detail.get("ctx", {}).get("error")
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), NOWHERE)
    if detail["type"] == "missing":
        return line, path, "missing"
    if detail["type"] == "extra_forbidden":
        near, siblings = _near(path, cls)
        return line, path, "no such field" + (did_you_mean(near) or f" among {', '.join(siblings)}")
    if isinstance(cause, UnknownNameError) or (cause and isinstance(value, dict)):
        return line, path, str(cause)
    wanted = str(cause or WANTED.get(detail["type"]) or detail["msg"].removeprefix("Input "))
    return line, path, f"got {shown(value)}, {wanted}"


def _near(path: KeyPath, cls: type[Config]) -> tuple[list[str], list[str]]:
    """Return the known fields that an unknown one may mean, and all fields of its section."""
    *above, name = (key for key in path if isinstance(key, str))
    fields = [(*section, field) for section, nested in sections(cls) for field in nested.model_fields]
    siblings = [field[-1] for field in fields if field[:-1] == tuple(above)]
    anywhere = nearest(name, [field[-1] for field in fields])
    return nearest(name, siblings) or [".".join(field) for field in fields if field[-1] in anywhere], siblings


def sections(cls: type[Config], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[Config]]]:
    """Yield a config class and every one nested in it, each with its path, in the order of declaration."""
    yield path, cls
    for name, field in cls.model_fields.items():
        if nested := nested_class(field.annotation):
            yield from sections(nested, (*path, name))


def nested_class(annotation: Any) -> type[Config] | None:
    """Return the config class that a field holds: itself, optional, or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next(filter(None, map(nested_class, get_args(annotation))), None)


# ---- writing and comparing ---------------------------------------------------------------------------------


def dump_config(config: Config) -> str:
    """Return the config as YAML, fields in the order of their declaration; it loads to an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def changed_fields(before: Config, after: Config) -> dict[str, str]:
    """Return what differs between two configs of a class: {"train.epochs": "train.epochs was 3, is 5"}."""
    return changed_values(before.model_dump(mode="json"), after.model_dump(mode="json"))


def changed_values(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """Return what differs between two nested mappings; an absent value counts as null."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return {
        name: f"{name} was {shown(old.get(name))}, is {shown(new.get(name))}"
        for name in old | new
        if old.get(name) != new.get(name)
    }


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(data, dict):
        yield name, data
        return
    for key, value in data.items():
        yield from _leaves(value, f"{name}.{key}".lstrip("."))
