"""Read a finished experiment into typed objects.

`Results` is results.json of any task; `Run` is a whole experiment (records/experiment.py lists its files). A `Run` can
also be a results file of another program, scored by detection/results_files.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.strict_yaml import read_yaml
from records.experiment import read_environments
from records.metrics import read_metrics

if TYPE_CHECKING:
    from stats.image_statistics import Statistics

Place = tuple[str, str]  # row and column of a results table, such as backbone and neck
CURE = "train again, or move the file away"


class Record(BaseModel):
    """A part of results.json. Tasks may add fields."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow", frozen=True)


RecordKind = TypeVar("RecordKind", bound=Record)


class InitialWeights(Record):
    """The weights that a run started from. Its first start loads and records them."""

    part: str = Field(description="part of the model that they initialized, such as trunk")
    name: str = Field(description="model.weights or model.start_from of the config")
    entry: str | None = Field(description="registry entry, or timm/MODEL.TAG; null for any other file")
    source: str = Field(description="URL where the entry is published, or the path of the file")
    file: str = Field(description="path of the file")
    sha256: str = Field(description="SHA-256 of the file")
    note: str = Field("", description="which weights were adapted or left out")

    def describe(self) -> str:
        """Return the part, the weights and the start of their SHA-256 in a line, for the log and README.md."""
        digits = f"SHA-256 {self.sha256[:8]}"
        origin = f"{self.entry} ({self.source}, {digits})" if self.entry else f"{self.file} ({digits})"
        return f"{self.part} from {origin}; {self.note}" if self.note else f"{self.part} from {origin}"


class Cost(Record):
    """Cost of the training. A value is None if it was not measured."""

    parameters: int | None = None
    gflops: float | None = Field(None, description="GFLOPs of one forward pass of one image")
    flops_counter: str | None = Field(None, description="tool that counted the FLOPs")
    train_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_mib: float | None = None
    processes: int = 1
    device: str | None = None

    @property
    def device_hours(self) -> float | None:
        """Training time in hours, times the number of processes."""
        return None if self.train_seconds is None else self.train_seconds * self.processes / 3600


class Protocol(Record):
    """How the scores were computed. Runs are compared only if all fields are equal, also fields that a task adds."""

    annotations: str | None = Field(None, description="name of the annotation file")
    annotations_sha256: str | None = None
    images_sha256: str | None = Field(None, description="SHA-256 of the validation images, without annotation file")
    images: int = Field(description="number of validation images")
    classes: list[str]


class Errors(Record):
    """A detector's errors by kind (detection/coco/errors.py)."""

    AP50: float | None
    delta_AP50: dict[str, float | None] = Field(description="AP50 gained if all errors of one kind were corrected")
    counts: dict[str, int] = {}


class Results(Record):
    """Content of results.json."""

    task: str
    variant: dict[str, str] = Field(min_length=2, max_length=2, description="row and column of a results table")
    seed: int
    metric: str = Field(description="name of the score that runs are compared by")
    lower_is_better: bool = Field(False, description="whether lower values of `metric` are better")
    scores: dict[str, float | None]
    per_class: dict[str, dict[str, int | float | None]] = {}
    errors: Errors | None = None
    protocol: Protocol
    inputs: dict[str, str] = Field(description="SHA-256 of each annotation file that was read, by path")
    image_sets: dict[str, str] = Field({}, description="SHA-256 of the images of each split, train and val")
    cost: Cost
    initial_weights: InitialWeights | None = Field(None, description="null: random, or recorded by an older version")
    epochs: int = 0
    steps: int = 0
    precision: str | None = None
    weights: str | None = Field(None, description="which weights were scored: moving average, or last step")
    category_ids: list[int] | None = Field(None, description="category id of each class of a detector, by label")
    score_function: str | None = Field(
        None, description="how a detector's scores are computed, softmax or sigmoid; null: softmax (older version)"
    )
    default_boxes: dict[str, Any] | None = Field(None, description="fit of the anchors, see detection/anchor_fit.py")

    @property
    def place(self) -> Place:
        """Row and column of a table, such as backbone and neck."""
        row, column = self.variant.values()
        return row, column

    @property
    def score(self) -> float | None:
        """Score that runs are compared by. None if the score is undefined."""
        return self.scores[self.metric]


@dataclass(frozen=True)
class Run:
    """A finished experiment, or a results file: the scored detections of a detector that was trained elsewhere."""

    path: Path  # experiment directory, or results file
    results: Results
    config: dict[str, Any]  # config.yaml; a results file has no config, curve or starts
    curve: list[dict]  # metrics.jsonl, a dict per epoch
    starts: list[dict]  # environment.json, a dict per start
    statistics: "Statistics | None" = field(default=None, repr=False)  # of a results file

    @property
    def is_experiment(self) -> bool:
        """Whether this is an experiment, not a results file."""
        return self.statistics is None

    def load_statistics(self) -> "Statistics":
        """Return the per-image statistics; those of an experiment are read from image_statistics.npz."""
        from stats.image_statistics import load_statistics  # imports numpy

        return load_statistics(self.path) if self.statistics is None else self.statistics

    @property
    def seed(self) -> int:
        return self.results.seed

    @property
    def score(self) -> float | None:
        return self.results.score


def read_run(experiment: Path) -> Run:
    """Read a finished experiment. Raises ValueError if it is unfinished, invalid or from an incompatible version."""
    path = experiment / "results.json"
    if not path.is_file():
        what = "not finished" if (experiment / "config.yaml").is_file() else "not an experiment"
        raise ValueError(f"{experiment}: {what}; it has no results.json")
    config, _ = read_yaml(experiment / "config.yaml")
    return Run(experiment, read_results(path), config, read_metrics(experiment), read_environments(experiment))


def read_results(path: Path) -> Results:
    """Read a results.json. Raises ValueError naming the file and the invalid fields."""
    results = read_record(path, Results, CURE)
    if results.metric not in results.scores:
        raise ValueError(f"{path}: corrupt: metric {results.metric!r} is not one of the scores; {CURE}")
    return results


def read_record(path: Path, kind: type[RecordKind], cure: str) -> RecordKind:
    """Read a JSON file as a record. Raises ValueError naming the file, the invalid fields and the cure, in one line."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in error.errors()]
        raise ValueError(f"{path}: corrupt, or from a different version: {'; '.join(problems)}; {cure}") from None


def read_object(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a JSON object that has these keys. Raises ValueError naming the file if the content is different."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: corrupt, not JSON ({error}); {CURE}") from None
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
    if missing:
        raise ValueError(f"{path}: corrupt, or from a different version: {', '.join(missing)} missing; {CURE}")
    return content
