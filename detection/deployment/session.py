"""Measure trained detectors in one session, write latency.json into each experiment, and print the comparison."""

import argparse
import math
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from data import DatasetError
from detection.coco.annotations import CocoFile, read_split
from detection.deployment import timing
from detection.deployment.programs import Runner, Times, available, build_all
from detection.deployment.tables import print_tables, short_names
from detection.deployment.timing import Cell
from detection.detector import Detector, load
from detection.task import DetectionConfig
from engine import distributed
from engine.compute.machine import allowed_cores
from engine.compute.precision import DTYPES, Precision, describe_device, inference_precision, is_in_hardware
from engine.logbook import logger, progress_bar
from engine.strict_yaml import ConfigError
from engine.terminal import counted, first_line
from records.experiment import describe_environment, read_experiment_config
from records.latency import LATENCY_FILE, Latency, Percentiles, Program, Timing, read_latency, write_latency
from stats.latency import quantile_interval

STAGES = ("network", "postprocess", "end_to_end")
PACKAGES = ("torch", "torchvision", "onnxruntime")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
Key: TypeAlias = tuple[Path, Program]


def run_latency(arguments: argparse.Namespace, device: torch.device) -> None:
    """Measure the experiments, write the records, and print two tables."""
    if distributed.world_size() > 1:
        raise ValueError("latency is measured by one process: start python -m detection.latency without torchrun")
    device = chosen_device(arguments.device, device)
    detectors = {path: load(path, device) for path in arguments.experiments}
    precision = common_precision(detectors, arguments.precision, device)
    split = common_split(arguments.experiments, arguments.overrides)
    files = shuffled_files(split, arguments.seed)
    runners = build_runners(detectors, available(arguments.programs, device, precision), precision, files)
    announce_replaced(arguments.experiments)
    load_meter, times, name = timing.Load(), {}, uuid.uuid4().hex[:12]
    for part in measure(runners, files, arguments.runs, np.random.default_rng(arguments.seed), load_meter):
        times |= part
        timings = {cell: timing_record(cell, series) for cell, series in times.items()}
        session = {"session": name} | describe_session(device, precision, split, load_meter)
        write_records(detectors, session, timings)  # now, because a larger batch or measuring memory can fail
    timings = with_memory(timings, runners, files, precision)
    write_records(detectors, session, timings)
    print_tables(short_names(arguments.experiments), session, times, timings)
    for path in detectors:
        print(f"written to {path / LATENCY_FILE}")


# ---- what is measured ------------------------------------------------------------------------------------------------


def chosen_device(name: str | None, default: torch.device) -> torch.device:
    """Return the device named on the command line. Raises ConfigError if this machine has no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU on this machine; use --device cpu")
    return torch.device("cpu") if name == "cpu" else default


def common_precision(detectors: Mapping[Path, Detector], wanted: Precision | None, device: torch.device) -> Precision:
    """Return the precision of the session: `wanted`, or else the one that this device runs all detectors in.

    Detectors that were trained in different precisions may share one, because a precision that the device does not
    support is replaced by fp32. Raises ConfigError if the device does not support `wanted`, or if nothing is wanted and
    the detectors do not share a precision."""
    supported = [name for name in DTYPES if is_in_hardware(name, device)]
    if wanted is not None:
        if wanted not in supported:
            raise ConfigError(
                f"--precision {wanted}: not supported by {describe_device(device)}; use {' or '.join(supported)}"
            )
        return wanted
    found = {path: inference_precision(detector.config.train.precision, device) for path, detector in detectors.items()}
    if len(set(found.values())) > 1:
        names = short_names(list(detectors))
        each = ", ".join(f"{names[path]} in {precision}" for path, precision in found.items())
        raise ConfigError(f"on this device, {each}: choose one for all with --precision {' or '.join(supported)}")
    return next(iter(found.values()))


def common_split(experiments: Sequence[Path], overrides: Sequence[str]) -> CocoFile:
    """Return the validation split, which must be the same in all experiments.

    Raises DatasetError if an experiment has different validation images than the first one."""
    splits = [read_split(read_experiment_config(path, DetectionConfig, overrides).data, "val") for path in experiments]
    for path, split in zip(experiments, splits, strict=True):
        if identity(split) != identity(splits[0]):
            raise DatasetError(
                f"{path}: its validation images ({split.annotations_path}, {len(split.images)} images) differ from "
                f"those of {experiments[0]} ({splits[0].annotations_path}, {len(splits[0].images)} images); measure "
                "them in separate sessions, or set data.val.annotations=FILE for all"
            )
    return splits[0]


def identity(split: CocoFile) -> tuple[str, list[str]]:
    return split.sha256, [image.file_name for image in split.images]


def shuffled_files(split: CocoFile, seed: int) -> list[Path]:
    """Return the image files of a split in random order."""
    order = np.random.default_rng(seed).permutation(len(split.images))
    return [split.file(index).path for index in order]


def build_runners(
    detectors: Mapping[Path, Detector], programs: Sequence[Program], precision: Precision, files: Sequence[Path]
) -> dict[Key, Runner]:
    """Build the programs of all detectors, and run each of them once."""
    runners = {}
    for path, detector in detectors.items():
        built = build_all(detector, programs, precision, files[:1])
        runners |= {(path, program): runner for program, runner in built.items()}
    return runners


# ---- timing ----------------------------------------------------------------------------------------------------------


def measure(
    runners: Mapping[Key, Runner],
    files: Sequence[Path],
    runs: int,
    generator: np.random.Generator,
    load_meter: timing.Load,
) -> Iterator[dict[Cell, list[Times]]]:
    """Time all programs at batch size 1, then at the largest batch that pays. Yields the times of every round for each.

    The search for that batch runs only one program of each experiment. If another one runs out of memory, the batch is
    halved."""
    steps = {key: lambda batch, runner=runner: runner.run(batch)[1] for key, runner in runners.items()}
    yield measure_batches(steps, files, 1, runs, generator, load_meter)
    first = {path: (path, program) for path, program in reversed(steps)}  # the first program of each experiment
    device = next(iter(runners.values())).detector.device
    size = timing.largest_batch([steps[key] for key in first.values()], files, device)
    while size > 1:
        try:
            times = measure_batches(steps, files, size, runs, generator, load_meter)
        except Exception as error:
            if not timing.is_out_of_memory(error):
                raise
        else:
            yield times
            return
        logger.warning("batch size %d: out of memory; measuring batch size %d instead", size, size // 2)
        size //= 2
        torch.cuda.empty_cache()  # after the handler, because the error refers to the tensors


def measure_batches(
    steps: Mapping[Key, timing.Step],
    files: Sequence[Path],
    size: int,
    runs: int,
    generator: np.random.Generator,
    load_meter: timing.Load,
) -> dict[Cell, list[Times]]:
    """Time all programs at a batch size."""
    stream = timing.batches(files, size)
    seconds = timing.warm_up(steps, stream, generator, max(2, timing.WARM_UP // size))  # also compiles for this size
    pairs = compared_pairs(list(steps))
    blocks = timing.MOST_BLOCKS
    if size > 1:
        runs, blocks = max(timing.FEWEST_RUNS, math.ceil(runs / size)), timing.MOST_BLOCKS_OF_BATCHES
    most = blocks * runs if pairs else runs
    logger.info(
        "batch size %d: %s rounds of %s, %s", size, span(runs, most), counted(len(steps), "program", "programs"),
        f"about {span(*(math.ceil(count * seconds / 60) for count in (runs, most)))} min",
    )  # fmt: skip
    series = timing.take_turns(steps, pairs, stream, runs, generator, load_meter, blocks)
    return {Cell(*key, size): each for key, each in series.items()}


def span(low: int, high: int) -> str:
    """Return a range of numbers as text: '200 to 2,000', or '3' if both are equal."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def compared_pairs(keys: Sequence[Key]) -> list[tuple[Key, Key]]:
    """Return the programs to compare by their ratio: each with the same program of the first experiment."""
    reference = keys[0][0]
    pairs = [((path, program), (reference, program)) for path, program in keys if path != reference]
    return [pair for pair in pairs if pair[1] in keys]


def with_memory(
    timings: Mapping[Cell, Timing], runners: Mapping[Key, Runner], files: Sequence[Path], precision: Precision
) -> dict[Cell, Timing]:
    """Return the records with the peak memory of each; if it cannot be measured, log a warning and leave it out."""
    found = dict(timings)
    for (path, program), runner in progress_bar(runners.items(), desc="memory", unit="program", leave=False):
        cells = [cell for cell in timings if (cell.experiment, cell.program) == (path, program)]
        batches = [next(timing.batches(files, cell.batch_size)) for cell in cells]
        try:
            peaks = timing.peak_memory(runner, path, program, precision, batches)
        except Exception as error:  # also if the process that measures it was killed
            logger.warning("%s, %s: memory not measured: %s", path, program, first_line(error))
            continue
        for cell, peak_mib in zip(cells, peaks, strict=True):
            found[cell] = timings[cell].model_copy(update={"peak_memory_mib": peak_mib})
    return found


# ---- records ----------------------------------------------------------------------------------------------


def percentiles(times: Sequence[float]) -> Percentiles:
    """Summarise the times of a stage, in milliseconds."""
    low, high = quantile_interval(times)
    p50, p95, p99 = np.quantile(times, (0.5, 0.95, 0.99))
    return Percentiles(p50=p50, p50_low=low, p50_high=high, p95=p95, p99=p99)


def timing_record(cell: Cell, series: Sequence[Times]) -> Timing:
    """Return the record of a cell from its times by round."""
    stages = {stage: percentiles([getattr(times, stage) for times in series]) for stage in STAGES}
    return Timing(
        program=cell.program,
        batch_size=cell.batch_size,
        **stages,
        images_per_second=1000 * cell.batch_size / stages["end_to_end"].p50,
        rounds_ms=[round(times.undelayed, 4) for times in series],
    )


def describe_session(device: torch.device, precision: Precision, split: CocoFile, load_meter: timing.Load) -> dict:
    """Return the fields of Latency that all experiments of the session share, without its name."""
    environment = describe_environment([platform.node()], device)
    cpu = f"{environment['cpu']} ({torch.backends.cpu.get_cpu_capability()}, {allowed_cores()} cores)"
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": environment["device"] if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "power": power_state(device),
        "load": load_meter.mean,
        "versions": versions,
        "images": len(split.images),
        "annotations_sha256": split.sha256,
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


def announce_replaced(experiments: Sequence[Path]) -> None:
    """Log which earlier measurements this session will replace, because an experiment keeps only the last one."""
    for path in experiments:
        with suppress(ValueError):  # an invalid record is replaced too
            if old := read_latency(path):
                programs = ", ".join(dict.fromkeys(each.program for each in old.timings))
                logger.warning("%s: replaces the times of %s (%s on %s)", path, old.measured[:10], programs, old.device)


def write_records(detectors: Mapping[Path, Detector], session: dict, timings: Mapping[Cell, Timing]) -> None:
    """Write latency.json into each experiment."""
    for path, detector in detectors.items():
        own = [each for cell, each in timings.items() if cell.experiment == path]
        record = Latency(**session, checkpoint=detector.path.name, step=detector.step, timings=own)
        write_latency(path, record)
