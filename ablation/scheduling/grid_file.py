"""The content of a grid file: rows, columns or factors, seeds, planned looks, and tuning."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from engine.config import Config
from engine.text import UnknownNameError
from stats.factorial import Design
from stats.trial_points import check_ranges

SCALED = ("optim.warmup_epochs", "optim.drop_epochs")  # fields of the schedule, which shrink with train.epochs


class ColumnConfig(Config):
    """A column of the table: overrides that apply to every row."""

    name: str = Field(description="name in the table")
    overrides: tuple[str, ...] = Field((), description="list of section.field=value")


class FactorConfig(ColumnConfig):
    """A factor of a two-level design, in place of columns. The high level has the overrides, the low level none."""

    product_of: tuple[str, ...] = Field(
        (), description="crossed factors; the product of their levels (low -1, high +1) is the level; empty: crossed"
    )


class RowConfig(ColumnConfig):
    """A row of the table: a config and overrides."""

    config: str = Field(description="config file of the task")
    columns: tuple[str, ...] | None = Field(None, description="columns to train for this row; null: all")


class TuneConfig(Config):
    """Trials that choose values for each row or cell, scored on a part of the training images ([tuning](tuning.md)).

    `epochs` is written `train.epochs: 0.3`, and an entry of `ranges` is written
    `optim.learning_rate: {log_uniform: [1e-4, 1e-2]}`."""

    per: Literal["row", "cell"] = Field(
        "row", description="what has its own trials and values: every row or every cell"
    )
    trials: int = Field(ge=2, le=1000, description="number of trials of each row or cell")
    on: float = Field(
        0.1, gt=0, le=0.5, description="share of the training images that trials are scored on instead of trained on"
    )
    seed: int = Field(0, ge=0, description="random seed of the drawn values")
    epochs: float = Field(1.0, gt=0, le=1, description="epochs of a trial, as a share of train.epochs")
    ranges: dict[str, dict[str, Any]] = Field(
        description="fields to choose, each with {log_uniform: [low, high]}, {uniform: [low, high]} or {choice: [...]}"
    )

    @model_validator(mode="before")
    @classmethod
    def _collect_fields(cls, data: Any) -> Any:
        """Move the names with a dot, which are fields of the training config, into `ranges` and `epochs`."""
        if not isinstance(data, dict):
            return data
        fields = {name: value for name, value in data.items() if "." in name}
        own = {name: value for name, value in data.items() if name not in fields}
        if unknown := sorted({"epochs", "ranges"} & own.keys()):
            raise ValueError(f"{unknown[0]}: no such field; name fields of the training config, such as train.epochs")
        if "train.epochs" in fields:
            own["epochs"] = fields.pop("train.epochs")
        if not fields:
            raise ValueError(
                "no field to choose; expected one such as optim.learning_rate: {log_uniform: [1e-4, 1e-2]}"
            )
        for name in SCALED:
            if name in fields and own.get("epochs", 1.0) != 1.0:
                raise ValueError(f"{name}: trials of fewer epochs cannot choose it; set train.epochs: 1.0")
        for name in ("train.seed", "data.holdout"):
            if name in fields:
                raise ValueError(
                    f"{name}: trials cannot choose it; list seeds under `seeds`, and the holdout under `on`"
                )
        check_ranges(fields)
        return own | {"ranges": fields}


class GridConfig(Config):
    """A grid file. Row overrides take precedence over column overrides, and column overrides over grid overrides."""

    task: str = Field(description="training module of the task, such as detection.training")
    seeds: tuple[int, ...] = Field(min_length=1, description="values of train.seed; each cell is trained once per seed")
    looks: tuple[int, ...] = Field(
        (), description="seeds per cell at which scores are compared, such as [3, 5, 8]; empty: no plan"
    )
    tune: TuneConfig | None = Field(None, description="trials that choose values; null: no tuning")
    overrides: tuple[str, ...] = Field((), description="list of section.field=value, for every cell")
    rows: tuple[RowConfig, ...] = Field(min_length=1)
    columns: tuple[ColumnConfig, ...] = ()
    factors: tuple[FactorConfig, ...] = ()

    @property
    def design(self) -> Design | None:
        """The factorial design; None for a grid with columns. Raises ValueError if the design is invalid."""
        return Design({factor.name: factor.product_of for factor in self.factors}) if self.factors else None

    @property
    def all_columns(self) -> Sequence[ColumnConfig]:
        """The columns, or one column for each point of the factorial design."""
        if self.design is None:
            return self.columns
        overrides = {factor.name: factor.overrides for factor in self.factors}
        return [
            ColumnConfig(
                name=name, overrides=tuple(each for factor in overrides if factor in high for each in overrides[factor])
            )
            for name, high in self.design.points.items()
        ]

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> Self:
        lists = {what: [entry.name for entry in getattr(self, what)] for what in ("rows", "columns", "factors")}
        for what, names in (*lists.items(), ("seeds", self.seeds)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{what}: {repeated[0]} is listed more than once")
        if bool(self.columns) == bool(self.factors):
            raise ValueError(
                f"got {'both columns and' if self.columns else 'neither columns nor'} factors, expected one of them"
            )
        columns = [column.name for column in self.all_columns]
        for row in self.rows:
            for name in row.columns or ():
                if name not in columns:
                    raise UnknownNameError(f"row {row.name}: column", name, columns)
        return self

    @model_validator(mode="after")
    def _looks_lead_to_all_seeds(self) -> Self:
        looks, seeds = list(self.looks), len(self.seeds)
        if looks and (looks != sorted({*looks}) or len(looks) < 2 or looks[0] < 2 or looks[-1] != seeds):
            example = f", such as [{max(2, seeds // 2)}, {seeds}]" if seeds > 2 else "; list at least three seeds"
            raise ValueError(
                f"looks: got {looks}, expected two or more increasing numbers of seeds per cell, the first at least 2 "
                f"and the last {seeds}, all seeds of the grid{example}"
            )
        return self

    @model_validator(mode="after")
    def _tuned_fields_are_not_set(self) -> Self:
        """Raise ValueError if an override sets a field that the trials choose: the override would be without effect."""
        chosen = self.tune.ranges if self.tune else ()
        for owner in (self, *self.rows, *self.all_columns):
            for field in map(field_of, owner.overrides):
                if field in chosen:
                    where = "overrides" if owner is self else f"row or column {owner.name!r}"
                    raise ValueError(f"{where} sets {field}, which the trials of `tune` choose; drop one")
        return self

    @model_validator(mode="after")
    def _factors_are_independent(self) -> Self:
        """Raise ValueError if two factors, or a factor and a row, set a field: one would be without effect."""
        owners: dict[str, str] = {}
        for factor in self.factors:
            for field in set(map(field_of, factor.overrides)):
                if field in owners:
                    raise ValueError(f"factors: {owners[field]} and {factor.name} both set {field}; merge or drop one")
                owners[field] = factor.name
        for row in self.rows:
            for field in map(field_of, row.overrides):
                if field in owners:
                    raise ValueError(f"row {row.name} sets {field}, which belongs to factor {owners[field]}; drop one")
        return self


def field_of(override: str) -> str:
    """Return the field that an override sets, such as "model.neck"."""
    return override.partition("=")[0]


def last_of(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the last override of each field."""
    return tuple({field_of(override): override for override in overrides}.values())
