from pathlib import Path

import pytest

from detection.recipe import PARTS, REFERENCE, describe_recipe
from detection.task import DetectionConfig
from engine.config import load_config

CONFIGS = [path for path in sorted(Path("configs").glob("*.yaml")) if "\nmodel:\n  backbone:" in path.read_text()]


def recipe(*overrides):
    return describe_recipe(load_config("configs/bccd.yaml", overrides, DetectionConfig))


def test_the_defaults_are_the_reference_recipe():
    assert recipe("train.ema_decay=null") == REFERENCE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss.classification", "focal"),
        ("loss.assignment", "atss"),
        ("loss.box", "ciou"),
        ("loss.reweight", "pisa"),
        ("model.head_tower", "4"),
        ("model.anchor_scales", "auto"),
        ("augment.policy", "mosaic"),
        ("train.ema_decay", "0.9"),
    ],
)
def test_each_part_that_differs_is_named_with_its_value(field, value):
    assert field in PARTS
    average = [] if field == "train.ema_decay" else ["train.ema_decay=null"]
    assert recipe(*average, f"{field}={value}") == f"{REFERENCE} with {field} {value}"


def test_settings_that_are_not_part_of_a_recipe_are_not_named():
    assert recipe("train.ema_decay=null", "train.epochs=3", "model.neck=pan", "augment.zoom_out=1") == REFERENCE


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_of_a_config_says_whether_its_recipe_is_the_reference(path):
    line = next(line for line in path.read_text().splitlines() if line.startswith("# Recipe "))
    is_reference = describe_recipe(load_config(path, ["train.ema_decay=null"], DetectionConfig)) == REFERENCE
    assert line.split()[2].rstrip(":") == ("reference" if is_reference else "modern")
