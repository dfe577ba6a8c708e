"""Read and write corruptions.json: the scores of a trained detector on corrupted images (arXiv 1907.07484, section 3).

    experiments/experiment_7/corruptions.json                    scores of each corruption and severity
    experiments/experiment_7/corruptions/gaussian_noise_3.npz    the per-image statistics of one of them
    experiments/experiment_7/corruptions/clean.npz               those of the original images

The record is written after each evaluation, so an interrupted command leaves a valid record that can be completed."""

import itertools
import json
import shlex
import statistics
from pathlib import Path
from typing import Any

from pydantic import Field

from engine.config import changed_values
from engine.files import write_text
from records.results import Record, read_record

CORRUPTIONS_FILE = "corruptions.json"
FOLDER = "corruptions"
CLEAN = "clean.npz"
NUM_CORRUPTIONS = 15  # that `detection.evaluate --corruptions` knows
Scores = dict[str, float | None]


class Robustness(Record):
    """Content of corruptions.json.

    The mean performance under corruption (mPC) is the mean score over all `corruptions` and `severities`; the relative
    performance under corruption (rPC) is mPC divided by the score on the original images."""

    metric: str = Field(description="name of the score that mPC is the mean of")
    corruptions: list[str] = Field(min_length=1)
    severities: list[int] = Field(min_length=1, description="1 (weak) to 5 (strong)")
    checkpoint: str = Field(description="name of the weights file")
    step: int = Field(description="number of optimizer steps after which the weights were saved")
    precision: str
    protocol: dict[str, Any] = Field(description="as in results.json")
    versions: dict[str, str] = Field(description="of the packages that corrupted pixels depend on")
    clean: Scores | None = Field(None, description="scores on the original images; null: not scored yet")
    scores: dict[str, dict[str, Scores]] = Field({}, description="by corruption and severity; may hold further ones")
    mPC: float | None = Field(None, description="null: not complete, or undefined")
    rPC: float | None = None

    @property
    def evaluations(self) -> list[tuple[str, int]]:
        """All pairs of corruption and severity that mPC is the mean of."""
        return list(itertools.product(self.corruptions, self.severities))

    @property
    def missing(self) -> list[tuple[str, int]]:
        """The pairs that have no score yet."""
        return [(name, severity) for name, severity in self.evaluations if not self.has(name, severity)]

    @property
    def is_complete(self) -> bool:
        return self.clean is not None and not self.missing

    def has(self, corruption: str, severity: int) -> bool:
        """Return whether a corruption was scored at a severity."""
        return str(severity) in self.scores.get(corruption, {})

    def with_scores(self, scores: Scores, corruption: str | None = None, severity: int = 0) -> "Robustness":
        """Return the record with the scores of one more evaluation, and with mPC and rPC if it is complete then.

        corruption: None for the original images."""
        if corruption is None:
            return self.model_copy(update={"clean": scores}).with_means()
        of_corruption = self.scores.get(corruption, {}) | {str(severity): scores}
        return self.model_copy(update={"scores": self.scores | {corruption: of_corruption}}).with_means()

    def with_means(self) -> "Robustness":
        """Return the record with the present mPC and rPC."""
        values = [self.scores[name][str(level)][self.metric] for name, level in self.evaluations if self.is_complete]
        if not values or None in values:
            return self.model_copy(update={"mPC": None, "rPC": None})
        mean, clean = statistics.fmean(values), self.clean[self.metric]
        return self.model_copy(update={"mPC": mean, "rPC": mean / clean if clean else None})

    def mean_of(self, corruption: str) -> float | None:
        """Return the mean score of a corruption over the severities; None if one is missing or undefined."""
        scores = self.scores.get(corruption, {})
        values = [scores.get(str(severity), {}).get(self.metric) for severity in self.severities]
        return None if None in values else statistics.fmean(values)

    def differences(self, other: "Robustness", also: tuple[str, ...] = ()) -> list[str]:
        """Return how the other record was made in a different way, such as "versions.numpy was 2.3.0, is 2.4.6".

        also: further fields to compare."""
        fields = {"metric", "protocol", "versions", *also}
        return list(changed_values(self.model_dump(include=fields), other.model_dump(include=fields)).values())


def statistics_name(corruption: str, severity: int) -> str:
    """Return the name of the file with the per-image statistics of one evaluation."""
    return f"{corruption}_{severity}.npz"


def command_for(experiment: Path, like: Robustness | None = None) -> str:
    """Return the command that scores an experiment under corruption, or that completes its record.

    like: a record with the wanted corruptions, severities and weights; None: the defaults of the command."""
    command = ["python", "-m", "detection.evaluate", str(experiment), "--corruptions"]
    if like:
        command += [",".join(like.corruptions)] if len(like.corruptions) < NUM_CORRUPTIONS else []
        command += ["--severities", ",".join(map(str, like.severities))]
        command += ["--checkpoint", "best"] if like.checkpoint == "best.pt" else []
    return shlex.join(command)


def read_robustness(experiment: Path) -> Robustness | None:
    """Read corruptions.json of an experiment; None if there is none. Raises ValueError if the file is invalid."""
    path, cure = experiment / CORRUPTIONS_FILE, f"delete this file and run {command_for(experiment)}"
    return read_record(path, Robustness, cure) if path.is_file() else None


def write_robustness(experiment: Path, robustness: Robustness) -> None:
    """Write corruptions.json into an experiment, replacing an older one."""
    write_text(experiment / CORRUPTIONS_FILE, json.dumps(robustness.model_dump(), indent=1) + "\n")
