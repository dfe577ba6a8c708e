"""Measure trained detectors in one session, write latency.json into each experiment, and print the comparison."""

import argparse
import math
import platform
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data import DatasetError
from detection.coco.annotations import CocoFile, read_split
from detection.deployment import timing
from detection.deployment.programs import Runner, Times, available, build_all
from detection.detector import Detector, load
from detection.task import DetectionConfig
from engine import distributed
from engine.compute.machine import allowed_cores
from engine.compute.precision import Precision, describe_device, inference_precision, is_in_hardware
from engine.logbook import logger
from engine.strict_yaml import ConfigError
from records.experiment import describe_environment, read_experiment_config, table
from records.latency import LATENCY_FILE, Latency, Percentiles, Program, Timing, write_latency
from stats.latency import RATIO_CONFIDENCE, quantile_interval, ratio_interval

PACKAGES = ("torch", "torchvision", "onnxruntime")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Cell(NamedTuple):
    """What is timed: a program of an experiment's detector at a batch size."""

    experiment: Path
    program: Program
    batch_size: int

    @property
    def names(self) -> dict[str, object]:
        """The first columns of a table."""
        return {"experiment": self.experiment.name, "program": self.program, "batch": self.batch_size}


def run_latency(arguments: argparse.Namespace, device: torch.device) -> None:
    """Measure the experiments, print two tables, and write the records."""
    if distributed.world_size() > 1:
        raise ValueError("latency is measured by one process: start python -m detection.latency without torchrun")
    device = chosen_device(arguments.device, device)
    detectors = {path: load(path, device) for path in arguments.experiments}
    precision = common_precision(detectors, arguments.precision, device)
    files = common_images(arguments.experiments, arguments.overrides, arguments.seed)
    programs = available(arguments.programs, device, precision)
    runners: dict[tuple[Path, Program], Runner] = {}
    for path, detector in detectors.items():
        built = build_all(detector, programs, precision, files[:1])
        runners |= {(path, program): runner for program, runner in built.items()}
    load_meter = timing.Load()
    times = measure(runners, files, arguments.runs, arguments.seed, load_meter)
    session = describe_session(device, precision, len(files), load_meter)
    logger.info("measuring memory")
    timings = {cell: timing_record(cell, series) for cell, series in times.items()}
    for (path, program), runner in runners.items():
        cells = [cell for cell in times if (cell.experiment, cell.program) == (path, program)]
        batches = [next(timing.batches(files, cell.batch_size)) for cell in cells]
        peaks = timing.peak_memory(runner, path, program, precision, batches)
        for cell, peak_mib in zip(cells, peaks, strict=True):
            timings[cell] = timings[cell].model_copy(update={"peak_memory_mib": peak_mib})
    print(table([cell.names | time_columns(each) for cell, each in timings.items()]))
    if rows := compare(times, arguments.experiments[0]):
        print(f"\ntime divided by that of {arguments.experiments[0].name}, with {RATIO_CONFIDENCE:.1%} intervals")
        print(table(rows))
    for path, detector in detectors.items():
        own = [each for cell, each in timings.items() if cell.experiment == path]
        write_latency(path, Latency(**session, checkpoint=detector.path.name, timings=own))
        print(f"written to {path / LATENCY_FILE}")


# ---- what is measured ------------------------------------------------------------------------------------------------


def chosen_device(name: str | None, default: torch.device) -> torch.device:
    """Return the device named on the command line. Raises ConfigError if this machine has no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU on this machine; use --device cpu")
    return torch.device("cpu") if name == "cpu" else default


def common_precision(detectors: Mapping[Path, Detector], wanted: Precision | None, device: torch.device) -> Precision:
    """Return the precision of the session: `wanted`, or else the one that all detectors are evaluated in.

    Raises ConfigError if the device lacks it, or if the detectors do not have one precision in common."""
    if wanted is not None:
        if not is_in_hardware(wanted, device):
            has = [name for name in ("fp32", "bf16", "fp16") if is_in_hardware(name, device)]
            raise ConfigError(f"--precision {wanted}: {describe_device(device)} has only {', '.join(has)}")
        return wanted
    found = {path: inference_precision(detector.config.train.precision, device) for path, detector in detectors.items()}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{path.name} {precision}" for path, precision in found.items())
        raise ConfigError(f"the experiments are evaluated in different precisions ({each}): choose one by --precision")
    return next(iter(found.values()))


def common_images(experiments: Sequence[Path], overrides: Sequence[str], seed: int) -> list[Path]:
    """Return the validation images of all experiments, in random order.

    Raises DatasetError if an experiment has different validation images than the first one."""
    splits = [read_split(read_experiment_config(path, DetectionConfig, overrides).data, "val") for path in experiments]
    for path, split in zip(experiments, splits, strict=True):
        if identity(split) != identity(splits[0]):
            raise DatasetError(
                f"{path}: its validation images ({split.annotations_path}, {len(split.images)} images) differ from "
                f"those of {experiments[0]} ({splits[0].annotations_path}, {len(splits[0].images)} images); measure "
                "them in separate sessions, or set data.val.annotations=FILE for all"
            )
    order = np.random.default_rng(seed).permutation(len(splits[0].images))
    return [splits[0].file(index).path for index in order]


def identity(split: CocoFile) -> tuple[str, list[str]]:
    return split.sha256, [image.file_name for image in split.images]


def measure(
    runners: Mapping[tuple[Path, Program], Runner],
    files: Sequence[Path],
    runs: int,
    seed: int,
    load_meter: timing.Load,
) -> dict[Cell, list[Times]]:
    """Time all programs at batch size 1, then at the largest batch that pays. Returns the times of every round."""
    steps = {key: lambda batch, runner=runner: runner.run(batch)[1] for key, runner in runners.items()}
    for step in steps.values():
        for batch, _ in zip(timing.batches(files, 1), range(timing.WARM_UP), strict=False):
            step(batch)
    first = {path: (path, program) for path, program in reversed(steps)}  # the first program of each experiment
    device = next(iter(runners.values())).detector.device
    largest = timing.largest_batch([steps[key] for key in first.values()], files, device)
    reference = next(iter(steps))[0]
    pairs = [((path, program), (reference, program)) for path, program in steps if path != reference]
    pairs = [pair for pair in pairs if pair[1] in steps]
    generator = np.random.default_rng(seed)
    times = {}
    for size in sorted({1, largest}):
        stream = timing.batches(files, size)
        for step in steps.values():
            step(next(stream))  # compiles for this size
        count = runs if size == 1 else max(timing.FEWEST_RUNS, math.ceil(runs / size))
        logger.info("batch size %d: at least %d rounds of %d programs", size, count, len(steps))
        series = timing.take_turns(steps, pairs, stream, count, generator, load_meter)
        times |= {Cell(*key, size): each for key, each in series.items()}
    return times


# ---- records and tables ----------------------------------------------------------------------------------------------


def percentiles(times: Sequence[float]) -> Percentiles:
    """Summarise the times of a stage, in milliseconds."""
    low, high = quantile_interval(times)
    p50, p95, p99 = np.quantile(times, (0.5, 0.95, 0.99))
    return Percentiles(p50=p50, p50_low=low, p50_high=high, p95=p95, p99=p99)


def timing_record(cell: Cell, series: Sequence[Times]) -> Timing:
    """Return the record of a cell from its times by round."""
    stages = {stage: percentiles([getattr(times, stage) for times in series]) for stage in Times._fields}
    return Timing(
        program=cell.program,
        batch_size=cell.batch_size,
        **stages,
        images_per_second=1000 * cell.batch_size / stages["end_to_end"].p50,
        rounds_ms=[round(times.end_to_end, 4) for times in series],
    )


def describe_session(device: torch.device, precision: Precision, images: int, load_meter: timing.Load) -> dict:
    """Return the fields of Latency that all experiments of the session share."""
    environment = describe_environment([platform.node()], device)
    cpu = f"{environment['cpu']} ({torch.backends.cpu.get_cpu_capability()}, {allowed_cores()} cores)"
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "session": uuid.uuid4().hex[:12],
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": environment["device"] if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "power": power_state(device),
        "load": load_meter.mean,
        "versions": versions,
        "images": images,
    }


def power_state(device: torch.device) -> str | None:
    """Return the clock and power of a GPU, or the frequency governor of the CPUs; None if unknown."""
    if device.type == "cuda":
        with suppress(Exception):  # needs pynvml, which raises its own types
            return f"{torch.cuda.clock_rate(device)} MHz, {torch.cuda.power_draw(device) / 1000:.0f} W"
        return None
    with suppress(OSError):
        return f"governor {GOVERNOR.read_text().strip()}"
    return None


def time_columns(timing: Timing) -> dict[str, object]:
    """Return the columns of the table of times: medians, and the 95th and 99th percentile from end to end."""
    total = timing.end_to_end
    memory = timing.peak_memory_mib
    return {
        "rounds": len(timing.rounds_ms),
        "network ms": f"{timing.network.p50:.2f}",
        "post-processing ms": f"{timing.postprocess.p50:.2f}",
        "end to end ms": f"{total.p50:.2f} ({total.p50_low:.2f} to {total.p50_high:.2f})",
        "p95": f"{total.p95:.2f}",
        "p99": f"{total.p99:.2f}",
        "images/s": f"{timing.images_per_second:.1f}",
        "MiB": "" if memory is None else f"{memory:.0f}",
    }


def compare(times: Mapping[Cell, Sequence[Times]], reference: Path) -> list[dict[str, object]]:
    """Return the rows of the table of ratios: each experiment divided by the first, with the same program and batch."""
    rows = []
    for cell, series in times.items():
        other = times.get(cell._replace(experiment=reference))
        if cell.experiment == reference or other is None:
            continue
        ratios = [
            ratio_interval([getattr(each, stage) for each in series], [getattr(each, stage) for each in other])
            for stage in ("network", "end_to_end")
        ]
        network, end_to_end = (f"{ratio.estimate:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" for ratio in ratios)
        rows.append(cell.names | {"network": network, "end to end": end_to_end, "verdict": ratios[1].verdict})
    return rows
