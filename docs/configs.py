"""Write docs/configs.md: every field of every config, out of the typed classes that read them.

    python -m docs.configs

tests/test_documentation.py holds that the page is what this writes.
"""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from ablation.plan import GridConfig
from classification.task import ClassificationConfig
from detection.task import DetectionConfig
from diffusion.task import DiffusionConfig
from engine.config import Config, _fields, _wanted

PAGE = Path(__file__).parent / "configs.md"
TABLE = re.compile(r"row of ([\w.]+)\.([A-Z_]+)")  # in a description: module and name of a table
OPENING = """\
# Configs

<!-- written by `python -m docs.configs`; change the classes it reads, not this page -->

A config is a YAML file, one for each row of a results table; `configs/` has them. Any field can be replaced on the
command line as `section.field=value`, where the value is YAML, too: `train.epochs=3`, `model.neck=fpn`,
`optim.drop_epochs=[43,54]`, `model.weights=null`.

The file is read strictly. An unknown field, a wrong type or a number out of range is an error with the line, the value
got and the value wanted, all of them at once; `1e-4` is a number and `no` is text. Nothing is rewritten: `config.yaml`
of an experiment is what was given, with the defaults below filled in.

Where the default is "required" there is none. "Row of a table" means one of the names below it; the tables are plain
dicts in the code, and [a new row](extending.md) is a few lines.
"""
TASKS = {
    "detection": ("`python -m detection.training CONFIG`", DetectionConfig),
    "classification": ("`python train_clf_imagenet.py CONFIG`", ClassificationConfig),
    "diffusion": ("`python -m diffusion.training CONFIG`", DiffusionConfig),
    "grid": ("`python -m ablation.grid run GRID`; [grids and comparisons](comparison.md)", GridConfig),
}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


def page() -> str:
    """The whole page, in Markdown."""
    lines = [OPENING]
    described: dict[type[Config], str] = {}  # class -> heading of its table
    for task, (command, cls) in TASKS.items():
        lines += [f"## {task}", "", f"{command}.", ""]
        for path, section in sections(cls):
            if path and section in described:
                lines += [f"`{path}` is [as above](#{anchor(described[section])}).", ""]
                continue
            if rows := list(field_rows(section)):
                described[section] = f"{task}: `{path}`" if path else f"{task}: the file"
                lines += [f"### {described[section]}", "", " ".join(section.__doc__.split()), ""]
                lines += ["| field | takes | default | |", "|---|---|---|---|", *rows, ""]
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


def field_rows(cls: type[Config]) -> Iterator[str]:
    """A line of the table for each field that is no section."""
    schemas = _fields(cls)
    for name, field in cls.model_fields.items():
        if nested_class(field.annotation):
            continue
        required = field.is_required()
        default = "required" if required else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
        description = field.description or ""
        for module, table in TABLE.findall(description):
            rows = ", ".join(f"`{row}`" for row in getattr(importlib.import_module(module), table))
            description += f": {rows}"
        cells = (f"`{name}`", _wanted(schemas[(name,)]), default, description)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def anchor(heading: str) -> str:
    """The name under which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    main()
