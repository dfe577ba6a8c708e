"""A config means what it says, or a report says everything that is wrong with it."""

import textwrap
from typing import Annotated, Literal

import pydantic
import pytest
from pydantic import Field, field_validator, model_validator

from engine.config import Config, changed_fields, dump_config, load_config
from engine.strict_yaml import ConfigError

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
    maps: tuple[Literal["coarse", "fine"], ...] = ()

    @field_validator("backbone")
    @classmethod
    def _known(cls, name):
        if name not in KNOWN_BACKBONES:
            raise ValueError(f"backbone {name!r}: expected one of {', '.join(KNOWN_BACKBONES)}")
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


def report(path, overrides=(), cls=RunConfig):
    """The lines of the report, without the path of the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides), cls)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "error" not in text.lower()
    return [line.strip() for line in text.removeprefix(f"{path}: ").splitlines()]


# ---- the base class ----------------------------------------------------------------------------------------


def test_a_config_is_frozen():
    with pytest.raises(pydantic.ValidationError):
        RunConfig.model_construct().seed = 1


@pytest.mark.parametrize("value", ["8", 8.0, 8.5, True, None, [8]])
def test_only_an_integer_is_an_integer(value):
    with pytest.raises(pydantic.ValidationError):
        TrainConfig(batch_size=value)


@pytest.mark.parametrize("value", ["0.1", True, float("nan"), float("inf")])
def test_only_a_finite_number_is_a_float(value):
    with pytest.raises(pydantic.ValidationError):
        EmaConfig(decay=value)


def test_an_integer_will_do_for_a_float():
    config = EmaConfig(decay=1)
    assert type(config.decay) is float


def test_a_bad_default_is_found():
    class Bad(Config):
        size: int = Field(0, gt=0)

    with pytest.raises(pydantic.ValidationError):
        Bad()


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
        train:
          amp: yes
          learning_rate: fast
          batch_size: 010
          batch_size: 3
        nekc: fpn
        """)
    assert report(path) == [
        "10 problems",
        "line 2, model.neck: got 'fnp', expected one of none, fpn, pan, dense_fpn; did you mean 'fpn'?",
        "line 3, model.bakbone: no such field; did you mean 'backbone'?",
        "line 4, model.input_size: got 32, expected an integer >= 96 or null",
        "line 6, data.root: got 4, expected text",
        "line 7, data.train.annotations: missing, expected text",
        "line 9, train.amp: got 'yes', expected true or false",
        "line 10, train.learning_rate: got 'fast', expected a number > 0 and <= 1",
        "line 11, train.batch_size: got 010, a leading zero is ambiguous; write 10 or '010'",
        "line 12, train.batch_size: given twice, first on line 11",
        "line 13, nekc: no such field; did you mean 'model.neck'?",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: {neck: no}", "model.neck: got 'no', expected one of none, fpn, pan, dense_fpn; did you mean 'none'?"),
        ("model: {neck: FPN}", "model.neck: got 'FPN', expected one of none, fpn, pan, dense_fpn; did you mean 'fpn'?"),
        (
            "model: {neck: null}",
            "model.neck: got null, expected one of none, fpn, pan, dense_fpn; did you mean 'none'?",
        ),
        (
            "model: {backbone: sin}",
            "model.backbone: backbone 'sin': expected one of resnet, swin; did you mean 'swin'?",
        ),
        ("model: {scales: [1, a]}", 'model.scales: got [1, "a"], expected a list, each a number'),
        ("model: {scales: 0.1}", "model.scales: got 0.1, expected a list, each a number"),
        (
            "model: {maps: [fine, corse]}",
            'model.maps: got ["fine", "corse"], expected a list, each one of coarse, fine; did you mean \'coarse\'?',
        ),
        (
            "model: {maps: fine}",
            "model.maps: got 'fine', expected a list, each one of coarse, fine",
        ),
        ("model: {grid: [1]}", "model.grid: got [1], expected a list (an integer, an integer)"),
        ("model: {grid: [1, 2, 3]}", "model.grid: got [1, 2, 3], expected a list (an integer, an integer)"),
        ("model:", "model: got null, expected a section with backbone, neck, input_size, scales, grid, maps"),
        ("train: {batch_size: 0}", "train.batch_size: got 0, expected an integer > 0"),
        ("train: {batch_size: 8.0}", "train.batch_size: got 8.0, expected an integer > 0"),
        ("train: {batch_size: '8'}", "train.batch_size: got '8', expected an integer > 0"),
        ("train: {batch_size: true}", "train.batch_size: got true, expected an integer > 0"),
        ("train: {learning_rate: .nan}", "train.learning_rate: got NaN, expected a number > 0 and <= 1"),
        ("train: {milestones: [0]}", "train.milestones: got [0], expected a list, each an integer > 0"),
        ("train: {milestones: [5, 3]}", "train: milestones must ascend"),
        ("train: {ema: {decai: 1}}", "train.ema.decai: no such field; did you mean 'decay'?"),
        ("train: {ema: 3}", "train.ema: got 3, expected a section with decay or null"),
        ("neck: fpn", "neck: no such field; did you mean 'model.neck'?"),
        ("images: x", "images: no such field; did you mean 'data.train.images' or 'data.extra.images'?"),
        ("modle: {neck: fpn}", "modle: no such field; did you mean 'model'?"),
        ("xyz: 1", "xyz: no such field; the top level has data, model, train, seed, weights"),
        ("train: {xyz: 1}", "train.xyz: no such field; train has batch_size, learning_rate, amp, milestones, ema"),
        ("weights: {cat: heavy}", 'weights: got {"cat": "heavy"}, expected a mapping'),
    ],
)
def test_a_bad_field_is_explained(write, text, line):
    assert report(write(DATA + text)) == [f"line 2, {line}"]


def test_a_bad_field_in_a_list_of_sections_is_named_by_its_position(write):
    path = write("""\
        data:
          root: d
          train: {images: i, annotations: a}
          extra:
            - {images: i, annotations: a}
            - images: i
              anotations: a
        """)
    assert report(path) == [
        "2 problems",
        "line 4, data.extra[1].annotations: missing, expected text",
        "line 7, data.extra[1].anotations: no such field; did you mean 'annotations'?",
    ]


def test_a_missing_section_is_reported(write):
    assert report(write("seed: 1\n")) == ["data: missing, expected a section with root, train, extra"]


def test_a_long_value_is_cut_in_the_report(write):
    [line] = report(write(f"{DATA}seed: {'x' * 10_000}\n"))
    assert len(line) < 150


# ---- overrides ---------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file(write):
    path = write(DATA + "model: {neck: fpn}\n")
    config = load(path, "model.neck=pan", "train.learning_rate=1e-3", "model.scales=[0.05, 0.1]", "seed=7")
    assert config.model.neck == "pan"
    assert config.train.learning_rate == 1e-3
    assert config.model.scales == (0.05, 0.1)
    assert config.seed == 7


@pytest.mark.parametrize(
    ("value", "text"), [("a=b", "a=b"), ("/data/coco", "/data/coco"), ("no", "no"), ("'010'", "010"), ("''", "")]
)
def test_an_override_may_hold_any_text(write, value, text):
    assert load(write(DATA), f"data.root={value}").data.root == text


def test_an_override_may_set_null_and_make_a_section(write):
    path = write(DATA + "model: {input_size: 128}\ntrain: {ema: null}\n")
    config = load(path, "model.input_size=null", "train.ema.decay=0.9")
    assert config.model.input_size is None
    assert config.train.ema == EmaConfig(decay=0.9)


def test_an_override_may_replace_a_bad_field_of_the_file(write):
    assert load(write(DATA + "model: {neck: fnp}\n"), "model.neck=fpn").model.neck == "fpn"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.neck=3", "command line, model.neck: got 3, expected one of none, fpn, pan, dense_fpn"),
        ("neck=fpn", "command line, neck: no such field; did you mean 'model.neck'?"),
        ("modle.neck=fpn", "command line, modle.neck: no such field; did you mean 'model.neck'?"),
        ("model.nekc=fpn", "command line, model.nekc: no such field; did you mean 'neck'?"),
        ("seed=1.5", "command line, seed: got 1.5, expected an integer"),
        ("seed=010", "command line, seed: got 010, a leading zero is ambiguous; write 10 or '010'"),
        ("seed=", "command line, seed: empty, expected a value, or null for none"),
        ("seed=[1", "command line, seed: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ("seed", "command line: got 'seed', expected section.field=value"),
        ("--seed", "command line: got '--seed', expected section.field=value"),
        ("model..neck=fpn", "command line: got 'model..neck=fpn', expected section.field=value"),
        ("=3", "command line: got '=3', expected section.field=value"),
        ("data.root.x=1", "command line, data.root.x: data.root is 'd' and has no fields"),
        ("train.milestones=43", "command line, train.milestones: got 43, expected a list, each an integer > 0"),
    ],
)  # fmt: skip
def test_a_bad_override_is_explained(write, override, line):
    assert report(write(DATA), [override]) == [line]


def test_an_override_given_twice_is_a_mistake(write):
    assert report(write(DATA), ["seed=1", "seed=2"]) == ["command line, seed: given twice"]


def test_problems_of_file_and_command_line_share_one_report(write):
    path = write(DATA + "model: {neck: fnp}\nseed: 010\n")
    assert report(path, ["train.batch_size=0", "modle.x=1", "foo"]) == [
        "5 problems",
        "line 2, model.neck: got 'fnp', expected one of none, fpn, pan, dense_fpn; did you mean 'fpn'?",
        "line 3, seed: got 010, a leading zero is ambiguous; write 10 or '010'",
        "command line: got 'foo', expected section.field=value",
        "command line, train.batch_size: got 0, expected an integer > 0",
        "command line, modle.x: no such field; did you mean 'model'?",
    ]


# ---- writing -----------------------------------------------------------------------------------------------


def test_a_dumped_config_is_readable():
    config = RunConfig(
        data=DataConfig(root="d", train=SplitConfig(images="i", annotations="a")),
        train=TrainConfig(milestones=(43, 54), learning_rate=1e-4, ema=EmaConfig()),
    )
    assert dump_config(config) == textwrap.dedent("""\
        data:
          root: d
          train:
            images: i
            annotations: a
          extra: []
        model:
          backbone: resnet
          neck: none
          input_size: null
          scales: [0.1, 0.2]
          grid: [1, 1]
          maps: []
        train:
          batch_size: 32
          learning_rate: 0.0001
          amp: false
          milestones: [43, 54]
          ema:
            decay: 0.999
        seed: 0
        weights: {}
        """)


@pytest.mark.parametrize("number", [1e-4, 1e-5, 2.6e-3, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e16, 1.0, -0.0, 3])
def test_numbers_come_back_exactly(write, number):
    config = EmaConfig(decay=number)
    again = load_config(write(dump_config(config)), [], EmaConfig)
    assert repr(again.decay) == repr(float(number))


@pytest.mark.parametrize(
    "text",
    ["", "no", "true", "null", "~", "010", "08", "1e-4", "1.e3", "10:00:00", "1_000", "2024-01-31", "<<", "=", "a: b",
     "# a", "*a", "&a", "!a", "- a", " a ", "a\nb", "a\tb", "'", '"', "\\", "{", "[]", "%", "@", "Mäuse 鼠 🐭",
     "x" * 300, "a b " * 60, "\x85", "\u2028", "\r\n", "\ufeff", "\x07", "---", "..."],
)  # fmt: skip
def test_text_comes_back_exactly(write, text):
    config = SplitConfig(images=text, annotations="a")
    assert load_config(write(dump_config(config)), [], SplitConfig) == config


def test_a_value_that_stands_twice_is_written_twice(write):
    split = SplitConfig(images="i", annotations="a")
    config = RunConfig(
        data=DataConfig(root="d", train=split, extra=(split, split)), weights={"1": 2.0, "true": 3.0, "a.b": 1e-7}
    )
    assert load_config(write(dump_config(config)), [], RunConfig) == config


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
