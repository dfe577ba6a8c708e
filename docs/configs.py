"""Write docs/configs.md: every field of every config, out of the typed classes that read them.

    python docs/configs.py

tests/test_documentation.py holds that the page is what this writes.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

sys.path.insert(0, str(Path(__file__).parent.parent))

from ablation.plan import GridConfig
from classification.task import ClassificationConfig
from detection.task import DetectionConfig
from diffusion.task import DiffusionConfig
from engine.config import Config, fields_of, wanted_of

PAGE = Path(__file__).parent / "configs.md"
TABLE = re.compile(r"row of ([\w.]+)\.([A-Z_]+)")  # in a description: module and name of a table
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


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(
        prog="python docs/configs.py",
        description=f"Write {PAGE.name}, every field of every config, anew.",
        epilog="example: python docs/configs.py",
    ).parse_args()
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


def page() -> str:
    """The whole page, in Markdown."""
    headings: dict[type[Config], str] = {}  # of each class, where it comes first
    for task, (_, cls) in TASKS.items():
        for path, section in sections(cls):
            headings.setdefault(section, f"{task}: `{path}`" if path else task)
    lines = [OPENING]
    for cls, heading in headings.items():
        commands = [command for command, top in TASKS.values() if top is cls]
        what = commands or [" ".join(cls.__doc__.split())]
        lines += [f"{'##' if commands else '###'} {heading}", "", *what, ""]
        lines += ["| field | takes | default | what it is |", "|---|---|---|---|", *rows(cls, headings), ""]
    return "\n".join(lines)


def sections(cls: type[Config], path: str = "") -> Iterator[tuple[str, type[Config]]]:
    """A config class and every one nested in it, each with its dotted path, in the order of declaration."""
    yield path, cls
    for name, field in cls.model_fields.items():
        if nested := nested_class(field.annotation):
            yield from sections(nested, f"{path}.{name}".lstrip("."))


def nested_class(annotation: Any) -> type[Config] | None:
    """The config class that a field holds: itself, optional, or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next(filter(None, map(nested_class, get_args(annotation))), None)


def rows(cls: type[Config], headings: dict[type[Config], str]) -> Iterator[str]:
    """The line of the table for each field; a section's links to its own table."""
    schemas = fields_of(cls)
    for name, field in cls.model_fields.items():
        nested = nested_class(field.annotation)
        description = field.description or " ".join(((nested and nested.__doc__) or "").split()).rstrip(".")
        if nested:
            kind = "sections" if get_origin(field.annotation) is tuple else "section"
            takes, default = f"[{kind}](#{anchor(headings[nested])})", "as it says there"
        else:
            takes, default = wanted_of(schemas[(name,)]), f"`{json.dumps(field.default, default=str)}`"
        for module, table in TABLE.findall(description):
            description += ": " + ", ".join(f"`{row}`" for row in getattr(importlib.import_module(module), table))
        cells = f"`{name}`", takes, "required" if field.is_required() else default, description
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def anchor(heading: str) -> str:
    """The name under which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    main()
