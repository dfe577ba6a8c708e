"""Write docs/configs.md: every field of every config, out of the typed classes that read them.

    python docs/configs.py

tests/test_documentation.py holds that the page is what this writes.
"""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

sys.path.insert(0, str(Path(__file__).parent.parent))

from ablation.plan import GridConfig
from classification.task import ClassificationConfig
from detection.task import DetectionConfig
from diffusion.task import DiffusionConfig
from engine.config import Config, nested_class, sections

PAGE = Path(__file__).parent / "configs.md"
TABLE = re.compile(r"row of ([\w.]+)\.([A-Z_]+)")  # in a description: module and name of a table
KINDS = {"integer": "an integer", "number": "a number", "string": "text", "boolean": "true or false", "null": "null",
         "array": "a list"}  # fmt: skip
LIMITS = {
    "exclusiveMinimum": ">",
    "minimum": ">=",
    "exclusiveMaximum": "<",
    "maximum": "<=",
    "minItems": "of length >=",
}
OPENING = """\
# Configs

<!-- written by `python docs/configs.py`; change the classes it reads, not this page -->

A config is a YAML file, one for each row of a results table; `configs/` has them. Any field can be replaced on the
command line as `section.field=value`, where the value is YAML, too: `train.epochs=3`, `model.neck=fpn`,
`optim.drop_epochs=[43,54]`, `model.weights=null`.

The file is read strictly. An unknown field, a wrong type or a number out of range is an error with the line, the value
got and the value wanted, all of them at once; `1e-4` is a number and `no` is text. Nothing is rewritten: `config.yaml`
of an experiment is what was given, with the defaults below filled in.

A field without a default is "required". "Row of" a table means one of its names; the tables are plain dicts in the
code, and [a new row](extending.md) is a few lines.
"""
TASKS = {
    "detection": ("`python -m detection.training CONFIG`: one row of a results table.", DetectionConfig),
    "classification": ("`python -m classification.training CONFIG`: one row of a results table.", ClassificationConfig),
    "diffusion": ("`python -m diffusion.training CONFIG`: one row of a results table.", DiffusionConfig),
    "grid": (
        "`python -m ablation.grid run GRID`: many rows, and [what is better](comparison.md). Where an override is "
        "given more than once, the row's counts before the column's, and both before the grid's.",
        GridConfig,
    ),
}


def page() -> str:
    """Return the whole page, in Markdown."""
    lines = [OPENING]
    for task, (command, top) in TASKS.items():
        seen = set()
        for path, cls in sections(top):
            if cls not in seen:  # train and val have one class
                seen.add(cls)
                heading = f"### {task}: `{'.'.join(path)}`" if path else f"## {task}"
                lines += [heading, "", " ".join(cls.__doc__.split()) if path else command, ""]
                lines += ["| field | takes | default | what it is |", "|---|---|---|---|", *rows(cls), ""]
    return "\n".join(lines)


def rows(cls: type[Config]) -> Iterator[str]:
    """Yield the line of the table for each field."""
    schema = cls.model_json_schema()["properties"]
    for name, field in cls.model_fields.items():
        if nested := nested_class(field.annotation):
            takes, default = "sections" if get_origin(field.annotation) is tuple else "section", "see below"
        else:
            takes, default = taken(schema[name]), f"`{json.dumps(field.default, default=str)}`"
        description = field.description or " ".join(((nested and nested.__doc__) or "").split()).rstrip(".")
        for module, table in TABLE.findall(description):
            description += ": " + ", ".join(f"`{row}`" for row in getattr(importlib.import_module(module), table))
        cells = f"`{name}`", takes, "required" if field.is_required() else default, description
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def taken(schema: dict[str, Any]) -> str:
    """Return what a field takes, by its JSON schema, in words: 'a number > 0 and <= 1 or null'."""
    if "anyOf" in schema:
        return " or ".join(map(taken, schema["anyOf"]))
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "prefixItems" in schema:
        return f"a list ({', '.join(map(taken, schema['prefixItems']))})"
    limits = " and ".join(f"{words} {schema[key]:.10g}" for key, words in LIMITS.items() if key in schema)
    each = f", each {taken(schema['items'])}" if "items" in schema else ""
    return f"{KINDS[schema['type']]} {limits}".rstrip() + each


if __name__ == "__main__":
    PAGE.write_text(page())
