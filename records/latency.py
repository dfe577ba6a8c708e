"""Read latency.json: how long a trained detector takes for an image, as measured by `detection.latency`.

Experiments that were measured together share a `session`. In round k of a session, all its experiments ran right after
each other, so that a busy machine slowed all of them alike: `Timing.rounds_ms` can be compared in pairs."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from engine.files import write_text
from records.results import Record, read_record

LATENCY_FILE = "latency.json"
CURE = "measure again with python -m detection.latency"
Program = Literal["eager", "compiled", "onnxruntime"]


class Percentiles(Record):
    """Time that one stage takes for a batch, in milliseconds."""

    p50: float
    p50_low: float = Field(description="lower end of the 95% interval of p50")
    p50_high: float = Field(description="upper end of the 95% interval of p50")
    p95: float
    p99: float


class Timing(Record):
    """The measurements of one program at one batch size."""

    program: Program
    batch_size: int
    network: Percentiles = Field(description="from the batch on the device to raw outputs")
    postprocess: Percentiles = Field(description="from raw outputs to boxes, with NMS")
    end_to_end: Percentiles = Field(description="from image files to boxes in pixels")
    images_per_second: float = Field(description="batch_size divided by the median of end_to_end")
    peak_memory_mib: float | None = Field(None, description="null: not measured")
    rounds_ms: list[float] = Field(description="end-to-end time of the batch in each round, without waiting for a core")


class Latency(Record):
    """Content of latency.json."""

    session: str = Field(description="name of the session, shared by the experiments that were measured together")
    measured: str = Field(description="date and time, UTC")
    device: str = Field(description="name of the GPU or CPU")
    threads: int = Field(description="CPU threads of torch and onnxruntime")
    precision: str
    power: str | None = Field(None, description="power state of the device, if known")
    load: float | None = Field(None, description="mean number of threads that ran or waited for a core")
    versions: dict[str, str]
    checkpoint: str = Field(description="name of the weights file")
    step: int = Field(description="number of optimizer steps after which the weights were saved")
    images: int = Field(description="number of validation images; each round takes the next ones, in random order")
    annotations_sha256: str = Field(description="SHA-256 of the annotation file of these images")
    timings: list[Timing]

    def timing(self, program: Program, batch_size: int) -> Timing | None:
        """Return the measurements of a program at a batch size; None if there are none."""
        return next((each for each in self.timings if (each.program, each.batch_size) == (program, batch_size)), None)


def read_latency(experiment: Path) -> Latency | None:
    """Read latency.json of an experiment; None if it was not measured. Raises ValueError if the file is invalid."""
    path = experiment / LATENCY_FILE
    return read_record(path, Latency, CURE) if path.is_file() else None


def write_latency(experiment: Path, latency: Latency) -> None:
    """Write latency.json into an experiment, replacing an older one."""
    write_text(experiment / LATENCY_FILE, json.dumps(latency.model_dump(), indent=1) + "\n")
