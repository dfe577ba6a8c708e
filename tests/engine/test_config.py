"""engine/config.py: typed configs, overrides, and error reports."""

import textwrap
from typing import Annotated, Literal

import pydantic
import pytest
from pydantic import Field, field_validator, model_validator

from engine.config import Config, changed_fields, dump_config, load_config
from engine.strict_yaml import ConfigError
from engine.text import UnknownNameError

KNOWN_BACKBONES = ("resnet", "swin")


class SplitConfig(Config):
    images: str
    annotations: str


class DataConfig(Config):
    root: str
    train: SplitConfig
    extra: tuple[SplitConfig, ...] = ()


class ModelConfig(Config):
    backbone: str = "resnet"
    neck: Literal["none", "fpn", "pan", "dense_fpn"] = "none"
    input_size: int | None = Field(None, ge=96)
    scales: tuple[float, ...] = (0.1, 0.2)
    grid: tuple[int, int] = (1, 1)

    @field_validator("backbone")
    @classmethod
    def _known(cls, name):
        if name not in KNOWN_BACKBONES:
            raise UnknownNameError("backbone", name, KNOWN_BACKBONES)
        return name


class EmaConfig(Config):
    decay: float = 0.999


class TrainConfig(Config):
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(1e-4, gt=0, le=1)
    amp: bool = False
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = ()
    ema: EmaConfig | None = None

    @model_validator(mode="after")
    def _ascending(self):
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError("milestones must ascend")
        return self


class RunConfig(Config):
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    seed: int = 0
    weights: dict[str, float] = Field(default_factory=dict)


DATA = "data: {root: d, train: {images: i, annotations: a}}\n"


def load(path, *overrides):
    return load_config(path, overrides, RunConfig)


def problems(path, *overrides, cls=RunConfig):
    """Load an invalid config; return the lines of its error, without the path of the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, cls)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return [line.strip() for line in text.removeprefix(f"{path}: ").splitlines()]


# ---- the base class ----------------------------------------------------------------------------------------


def test_a_config_is_frozen():
    with pytest.raises(pydantic.ValidationError):
        RunConfig.model_construct().seed = 1


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        *((TrainConfig, {"batch_size": value}) for value in ("8", 8.0, True, None, [8])),
        *((EmaConfig, {"decay": value}) for value in ("0.1", True, float("nan"), float("inf"))),
    ],
)
def test_types_are_strict(cls, fields):
    with pytest.raises(pydantic.ValidationError):
        cls(**fields)


# ---- from a file to a config -------------------------------------------------------------------------------


def test_a_file_becomes_a_typed_config(write):
    config = load(
        write(f"""\
            {DATA}
            model: {{neck: pan, scales: [1, 2.5], input_size: 128}}
            train: {{milestones: [43, 54], amp: true}}
            """)
    )
    assert config.data.train == SplitConfig(images="i", annotations="a")
    assert config.model == ModelConfig(neck="pan", scales=(1.0, 2.5), input_size=128)
    assert config.train == TrainConfig(milestones=(43, 54), amp=True)
    assert config.seed == 0


def test_every_bad_field_is_reported_at_once_in_the_order_of_the_file(write):
    path = write("""\
        model:
          neck: fnp
          bakbone: swin
          input_size: 32
        data:
          root: 4
          train: {images: i}
          extra: [{images: i, annotations: 1}]
        train:
          amp: yes
        nekc: fpn
        """)
    lines = problems(path, "train.batch_size=0", "modle.x=1", "foo")
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "line 2, model.neck", "line 3, model.bakbone", "line 4, model.input_size", "line 6, data.root",
        "line 7, data.train.annotations", "line 8, data.extra.0.annotations", "line 10, train.amp", "line 11, nekc",
        "command line", "command line, train.batch_size", "command line, modle",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "field", "parts"),
    [
        ("model: {neck: no}", "model.neck", ["'no'", "'none', 'fpn', 'pan' or 'dense_fpn'"]),
        ("model: {backbone: sin}", "model.backbone", ["'sin'", "resnet, swin", "did you mean 'swin'?"]),
        ("model: {scales: [1, a]}", "model.scales.1", ["'a'", "number"]),
        ("model: {scales: 0.1}", "model.scales", ["0.1", "a list"]),
        ("model: {grid: [1, 2, 3]}", "model.grid", ["[1, 2, 3]", "at most 2"]),
        ("train: {batch_size: 0}", "train.batch_size", ["got 0", "greater than 0"]),
        ("train: {batch_size: 8.0}", "train.batch_size", ["got 8.0", "integer"]),
        ("train: {amp: yes}", "train.amp", ["'yes'", "true or false"]),
        ("train: {learning_rate: .nan}", "train.learning_rate", ["NaN"]),
        ("train: {milestones: [5, 3]}", "train", ["milestones must ascend"]),
        ("train: {ema: {decai: 1}}", "train.ema.decai", ["did you mean 'decay'?"]),
        ("neck: fpn", "neck", ["did you mean 'model.neck'?"]),
        ("xyz: 1", "xyz", ["data, model, train, seed, weights"]),
        (f"seed: {'x' * 10_000}", "seed", ["'xxx", "xxx..."]),
    ],
)
def test_an_invalid_field_is_reported_with_its_line_the_value_and_the_expected_value(write, text, field, parts):
    [line] = problems(write(DATA + text))
    assert line.startswith(f"line 2, {field}: ")
    assert [part for part in parts if part not in line] == []
    assert len(line) < 150


def test_a_config_of_a_different_command_is_reported_in_one_line(write):
    [line] = problems(write(DATA + "a1: 1\nb2: 2\nc3: 3\nd4: 4\ne5: 5\n"))
    assert "different command: RunConfig has no a1, b2" in line


# ---- overrides ---------------------------------------------------------------------------------------------


def test_overrides_replace_values_of_the_file(write):
    path = write(DATA + "model: {neck: fnp, input_size: 128}\ntrain: {ema: null}\n")
    config = load(
        path, "model.neck=pan", "train.learning_rate=1e-3", "model.scales=[0.05, 0.1]", "seed=7",
        "model.input_size=null", "train.ema.decay=0.9",
    )  # fmt: skip
    assert config.model == ModelConfig(neck="pan", scales=(0.05, 0.1), input_size=None)
    assert config.train == TrainConfig(learning_rate=1e-3, ema=EmaConfig(decay=0.9))
    assert config.seed == 7


@pytest.mark.parametrize(
    ("value", "text"), [("a=b", "a=b"), ("/data/coco", "/data/coco"), ("no", "no"), ("'010'", "010"), ("''", "")]
)
def test_an_override_may_contain_any_text(write, value, text):
    assert load(write(DATA), f"data.root={value}").data.root == text


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("neck=fpn", ["command line, neck: ", "did you mean 'model.neck'?"]),
        ("seed=1.5", ["command line, seed: ", "got 1.5", "integer"]),
        ("seed=", ["command line, seed: ", "empty", "null"]),
        ("seed", ["command line: ", "'seed'", "section.field=value"]),
        ("=3", ["'=3'", "section.field=value"]),
        ("data.root.x=1", ["command line, data.root.x: ", "data.root is 'd'", "no fields"]),
    ],
)
def test_an_invalid_override_is_explained(write, override, parts):
    [line] = problems(write(DATA), override)
    assert [part for part in parts if part not in line] == []


# ---- writing -----------------------------------------------------------------------------------------------


def test_a_dumped_config_is_readable():
    config = TrainConfig(milestones=(43, 54), learning_rate=1e-4, ema=EmaConfig())
    assert dump_config(config) == textwrap.dedent("""\
        batch_size: 32
        learning_rate: 0.0001
        amp: false
        milestones: [43, 54]
        ema:
          decay: 0.999
        """)


@pytest.mark.parametrize("number", [1e-4, 1e-5, 2.6e-3, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e16, 1.0, -0.0, 3])
def test_numbers_are_dumped_and_loaded_exactly(write, number):
    config = EmaConfig(decay=number)
    loaded = load_config(write(dump_config(config)), [], EmaConfig)
    assert repr(loaded.decay) == repr(float(number))


@pytest.mark.parametrize(
    "text",
    ["", "no", "true", "null", "~", "010", "1e-4", "10:00:00", "1_000", "2024-01-31", "<<", "=", "a: b", "# a", "*a",
     "!a", "- a", " a ", "a\nb", "a\tb", "'", '"', "\\", "{", "%", "Mäuse 鼠 🐭", "x" * 300, "a b " * 60, "\x85",
     "\u2028", "\r\n", "\ufeff", "\x07", "---", "..."],
)  # fmt: skip
def test_text_is_dumped_and_loaded_exactly(write, text):
    config = SplitConfig(images=text, annotations="a")
    assert load_config(write(dump_config(config)), [], SplitConfig) == config


# ---- comparing ---------------------------------------------------------------------------------------------


def test_changed_fields_are_named_with_both_values(write):
    path = write(DATA)
    before, after = load(path), load(path, "seed=3", "model.scales=[1]", "train.ema.decay=0.5")
    assert changed_fields(before, after) == {
        "model.scales": "model.scales was [0.1, 0.2], is [1.0]",
        "train.ema.decay": "train.ema.decay was null, is 0.5",
        "seed": "seed was 0, is 3",
    }
    assert changed_fields(before, before) == {}
