"""Typed configuration: a frozen base class, and one report of all that is wrong with a file and its overrides.

A config class derives from `Config` and lives beside what it configures. `load_config` reads a YAML file and the
command line's overrides into it; `dump_config` writes it back as a file that loads to an equal object.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.strict_yaml import (
    COMMAND_LINE,
    DID_YOU_MEAN,
    NOWHERE,
    ConfigError,
    KeyPath,
    Problem,
    did_you_mean,
    dump_yaml,
    nearest,
    read_mapping,
    read_value,
    report,
    shown,
)


class Config(BaseModel):
    """Base of every config: frozen, no unknown fields, strict (8 will do for 8.0, but '8' or 8.0 not for 8)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


UNKNOWN = "no such field"
FEWEST_UNKNOWN = 5  # fields in a file that was meant for something else

ConfigClass = TypeVar("ConfigClass", bound=Config)


def load_config(path: str | Path, overrides: Sequence[str], cls: type[ConfigClass]) -> ConfigClass:
    """Read a config file, lay the command line's overrides over it, and validate the whole.

    overrides: `section.field=value` each, the value in YAML: `model.neck=fpn`, `train.milestones=[43, 54]`.
    Raises ConfigError: every bad field with its line, its dotted name, the value got and the value wanted; or one
    sentence, if the file was meant for another task.
    """
    data, lines, problems = read_mapping(path)
    overridden, override_problems = _override(data, lines, overrides)
    problems += override_problems
    try:
        # By way of JSON: strict there still takes a list for a tuple, and a list is all that YAML has.
        config = cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        # Where a problem is known the data holds a stand-in, which must not be reported as well.
        known = [problem.path for problem in problems]
        for problem in _explain(error, data, lines, overridden, cls):
            if not any(path[: len(problem.path)] == problem.path for path in known):
                problems.append(problem)
    if problems:
        unknown = [  # to the file itself, and like nothing that is known: no typos
            ".".join(_names(problem.path))
            for problem in problems
            if problem.line != COMMAND_LINE and UNKNOWN in problem.message and DID_YOU_MEAN not in problem.message
        ]
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        if len(unknown) >= FEWEST_UNKNOWN or (unknown and not required & data.keys()):
            raise ConfigError(
                f"{path}: a config of another kind: a {cls.__name__} has no {', '.join(unknown[:FEWEST_UNKNOWN])}; its "
                "first lines, or the README.md of its experiment, say for which command it is"
            )
        raise report(path, problems)
    return config


def read_overridden(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A config file with overrides laid over it, as plain data, validated by nobody.

    Raises ConfigError for what the strict reader refuses, and for an override that cannot be laid over."""
    data, lines, problems = read_mapping(path)
    problems += _override(data, lines, overrides)[1]
    if problems:
        raise report(path, problems)
    return data


def _override(
    data: dict[str, Any], lines: dict[KeyPath, int], overrides: Sequence[str]
) -> tuple[list[KeyPath], list[Problem]]:
    """Write the overrides into data and lines; return the paths they set and what is wrong with the rest."""
    paths: list[KeyPath] = []
    problems = []
    for override in overrides:
        name, equals, text = override.partition("=")
        path = tuple(name.split("."))
        try:
            if not equals or not all(path):
                path = ()
                raise ValueError(f"got {override!r}, expected section.field=value")
            if path in paths:
                raise ValueError("given twice")
            _set(data, lines, path, read_value(text))
            paths.append(path)
        except ValueError as error:
            problems.append(Problem(COMMAND_LINE, path, str(error)))
    return paths, problems


def _set(data: dict[str, Any], lines: dict[KeyPath, int], path: tuple[str, ...], value: Any) -> None:
    """Put value at path as coming from the command line, making the sections on the way.

    Raises ValueError if the way leads through something that is not a section.
    """
    for depth, key in enumerate(path[:-1], start=1):
        if data.get(key) is None:  # absent, or an optional section that was null
            data[key] = {}
            lines[path[:depth]] = COMMAND_LINE
        data = data[key]
        if not isinstance(data, dict):
            raise ValueError(f"{'.'.join(path[:depth])} is {shown(data)} and has no fields")
    data[path[-1]] = value
    for key_path in [key_path for key_path in lines if key_path[: len(path)] == path]:
        del lines[key_path]
    lines[path] = COMMAND_LINE


# ---- explaining what is wrong ------------------------------------------------------------------------------

Schema = dict[str, Any]  # JSON schema, pydantic's public description of a config class


def _explain(
    error: ValidationError,
    data: dict[str, Any],
    lines: dict[KeyPath, int],
    overridden: Sequence[KeyPath],
    cls: type[Config],
) -> Iterator[Problem]:
    """Turn pydantic's findings into at most one problem per field, placed in the lines of the file."""
    fields = fields_of(cls)
    seen: set[KeyPath] = set()
    for detail in error.errors(include_url=False):
        path, value = _locate(detail["loc"], data)
        if detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
            path = (*path, detail["loc"][-1])
            message = f"missing, expected {wanted_of(fields.get(_names(path), {}))}"
        elif detail["type"] == "extra_forbidden":
            # Of an unknown section on the command line, name the field in it: that is what the user typed.
            path = next((o for o in overridden if o[: len(path)] == path), path)
            message = f"{UNKNOWN}{_suggestion(_names(path), fields)}"
        elif "error" in detail.get("ctx", {}):  # raised by a validator
            message = str(detail["ctx"]["error"])
            choices = re.findall(r"[\w.+-]+", message.partition("one of ")[2])
            message += did_you_mean(nearest(value, choices))
            if not isinstance(value, dict) and repr(value) not in message:
                message = f"got {shown(value)}: {message}"
        else:
            item = value
            while _names(path) not in fields or (path and isinstance(path[-1], int)):
                path = path[:-1]  # from an item of a list to the field that holds the list
            _, value = _locate(path, data)
            schema = fields[_names(path)]
            message = f"got {shown(value)}, expected {wanted_of(schema)}"
            in_lists = [choice for branch in _branches(schema) for choice in _choices(branch.get("items", {}))]
            message += did_you_mean(nearest(item, _choices(schema) or [each for each in in_lists if each != item]))
        if path not in seen:
            seen.add(path)
            line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), NOWHERE)
            yield Problem(line, path, message)


def _locate(loc: KeyPath, data: Any) -> tuple[KeyPath, Any]:
    """Follow pydantic's location into the data, past the names it puts in for the members of a union."""
    path: KeyPath = ()
    for key in loc:
        if key in (data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()):
            path, data = (*path, key), data[key]
    return path, data


def _names(path: KeyPath) -> tuple[str, ...]:
    return tuple(key for key in path if isinstance(key, str))


def fields_of(cls: type[Config]) -> dict[tuple[str, ...], Schema]:
    """Every section and field of a config class by its path; () is the class itself."""
    schema = cls.model_json_schema()
    fields: dict[tuple[str, ...], Schema] = {}

    def visit(path: tuple[str, ...], schema: Schema) -> None:
        fields[path] = schema
        for branch in _branches(schema):
            for name, field in (branch | branch.get("items", {})).get("properties", {}).items():
                visit((*path, name), field)

    visit((), _inline(schema, schema.get("$defs", {})))
    return fields


def _inline(node: Any, definitions: dict[str, Schema]) -> Any:
    """The schema with every reference to a nested class replaced by that class."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inline(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    return {key: _inline(value, definitions) for key, value in node.items() if key != "$defs"}


def _branches(schema: Schema) -> list[Schema]:
    """The alternatives of a union; of anything else, itself."""
    alternatives = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    return [b for a in alternatives for b in _branches(a)] if alternatives else [schema]


def _choices(schema: Schema) -> list[Any]:
    """The values of a Literal."""
    listed = [branch.get("enum", [branch["const"]] if "const" in branch else []) for branch in _branches(schema)]
    return [choice for choices in listed for choice in choices]


_KINDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}
_CONSTRAINTS = {
    "exclusiveMinimum": ">",
    "minimum": ">=",
    "exclusiveMaximum": "<",
    "maximum": "<=",
    "multipleOf": "in steps of",
    "minLength": "of length >=",
    "maxLength": "of length <=",
    "minItems": "of length >=",
    "maxItems": "of length <=",
    "pattern": "matching",
}


def wanted_of(schema: Schema) -> str:
    """What a field takes, in words: 'a number > 0 and <= 1 or null'."""
    return " or ".join(dict.fromkeys(_wanted_branch(branch) for branch in _branches(schema)))


def _wanted_branch(schema: Schema) -> str:
    if choices := _choices(schema):
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    if "properties" in schema:
        return f"a section with {', '.join(schema['properties'])}"
    kind = _KINDS.get(schema.get("type", ""), "another value")
    constraints = [f"{words} {_plain(schema[key])}" for key, words in _CONSTRAINTS.items() if key in schema]
    if "prefixItems" in schema:
        constraints = [f"({', '.join(wanted_of(item) for item in schema['prefixItems'])})"]
    wanted = f"{kind} {' and '.join(constraints)}".rstrip()
    return f"{wanted}, each {wanted_of(schema['items'])}" if schema.get("items") else wanted


def _plain(bound: float | str) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _suggestion(names: tuple[str, ...], fields: dict[tuple[str, ...], Schema]) -> str:
    """The known field that an unknown one probably means; without any, the fields of its section."""
    depth = max(n for n in range(len(names)) if names[:n] in fields)
    section, unknown = names[:depth], names[depth]
    siblings = [path[-1] for path in fields if path and path[:-1] == section]
    dotted = {".".join(path): path[-1] for path in fields if path}
    near = (
        [field for field, name in dotted.items() if name == names[-1]]  # right name, wrong section
        or nearest(unknown, siblings)
        or [field for field, name in dotted.items() if [name] == nearest(names[-1], dotted.values())]
    )
    return did_you_mean(near) or f"; {'.'.join(section) or 'the top level'} has {', '.join(siblings)}"


# ---- writing and comparing ---------------------------------------------------------------------------------


def dump_config(config: Config) -> str:
    """The config as YAML, fields in the order of their declaration; it loads to an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def changed_fields(before: Config, after: Config) -> dict[str, str]:
    """What differs between two configs of a class: {"train.epochs": "train.epochs was 3, is 5"}."""
    return changed_values(before.model_dump(mode="json"), after.model_dump(mode="json"))


def changed_values(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """The same of plain nested data; a value that is absent counts as null."""
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
