"""Trained detectors as programs that turn image files into boxes: eager, compiled, or in onnxruntime.

All programs of a detector share pre- and post-processing; only the network differs. The network's input is the same,
too: pixels in uint8, because the network normalises them itself.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from detection.coco.detections import Detections
from detection.deployment.formats import Network, load_onnx, trace_onnx
from detection.detector import Detector, rgb_pixels
from engine.command import RunError
from engine.compute.precision import Precision, autocast
from engine.logbook import logger
from engine.terminal import first_line
from records.latency import Program

PROGRAMS = get_args(Program)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SCHEDULE = Path("/proc/thread-self/schedstat")
OUTPUTS = ("box_deltas", "class_logits")


class Times(NamedTuple):
    """Time that each stage took for a batch, in milliseconds."""

    network: float  # from the batch on the device to raw outputs
    postprocess: float  # from raw outputs to boxes, with NMS
    end_to_end: float  # from image files to boxes in pixels: also decoding, resizing, and transfers
    waiting: float = 0.0  # part of end_to_end: other processes had the core; CPU only, and only of the main thread

    @property
    def undelayed(self) -> float:
        """Time from end to end without waiting for a core. Ratios use it, because waiting depends on other processes.

        If programs wait often, the ratio of their times from end to end is closer to 1 than on an idle machine."""
        return self.end_to_end - self.waiting


@dataclass(frozen=True)
class Runner:
    """A program of a detector. network: images (B, 3, S, S) uint8, on the detector's device -> outputs of an SSD."""

    detector: Detector
    network: Network
    channels_last: bool

    @torch.inference_mode()
    def run(self, files: Sequence[Path]) -> tuple[list[Detections], Times]:
        """Detect objects in image files, as one batch."""
        device = self.detector.device
        started, waiting = time.perf_counter(), waited(device)
        pictures = [rgb_pixels(file) for file in files]
        images = self.detector.batch(pictures, self.channels_last)
        loaded = finished(device)
        outputs = self.network(images)
        computed = finished(device)
        results = self.detector.postprocess(outputs)
        detected = finished(device)
        found = [self.detector.in_pixels(raw, pixels.shape) for pixels, raw in zip(pictures, results, strict=True)]
        waiting = waited(device) - waiting  # read within the times of the clock, so that it cannot exceed them
        seconds = computed - loaded, detected - computed, finished(device) - started, waiting
        return found, Times(*(1000 * each for each in seconds))


def finished(device: torch.device) -> float:
    """Wait until the device has done its work; return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def waited(device: torch.device) -> float:
    """Return how long this thread has waited for a core so far, in seconds.

    0 on systems that do not report it, and for a GPU, which computes while the thread waits."""
    if device.type == "cuda":
        return 0.0
    try:
        return int(SCHEDULE.read_text().split()[1]) / 1e9  # see "schedstat" in proc_pid(5)
    except (OSError, ValueError, IndexError):
        return 0.0


def available(wanted: Sequence[Program] | None, device: torch.device, precision: Precision) -> list[Program]:
    """Return the programs that can run, in the order of PROGRAMS; log one line for each program that is left out.

    wanted: None means all. Raises RunError if a program that was asked for by name cannot run."""
    found = []
    for program in PROGRAMS:
        if wanted is not None and program not in wanted:
            continue
        obstacle = obstacle_to(program, device, precision)
        if not obstacle:
            found.append(program)
        elif wanted is not None:
            raise RunError(f"--programs {program}: {obstacle}")
        else:
            logger.info("%s is left out: %s", program, obstacle)
    return found


def obstacle_to(program: Program, device: torch.device, precision: Precision) -> str:
    """Return why a program cannot run, with the cure, in one line; empty if it can run."""
    if program == "compiled" and (reason := compile_obstacle(device)):
        return f"torch.compile does not work on this machine ({reason}); install what it needs, such as a C++ compiler"
    if program != "onnxruntime":
        return ""
    if missing := [name for name in ONNX_PACKAGES if not find_spec(name)]:
        return f"not installed: {', '.join(missing)}; use pip install -e '.[export]'"
    if device.type != "cpu":
        return "exports are measured on the CPU only; use --device cpu"
    if precision != "fp32":
        return f"exports compute in fp32, but the precision is {precision}; use --precision fp32"
    return ""


def compile_obstacle(device: torch.device) -> str:
    """Return the reason, in one line, why torch.compile does not work on this machine; empty if it works."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # compilers raise many types of exception
        return first_line(error)
    return ""


def build(detector: Detector, program: Program, precision: Precision) -> Runner:
    """Return a program of a detector, which computes in this precision."""
    channels_last = program != "onnxruntime" and detector.config.train.channels_last
    return Runner(detector, NETWORKS[program](detector, precision), channels_last)


def eager(detector: Detector, precision: Precision) -> Network:
    return in_precision(detector.model, detector.device, precision)


def compiled(detector: Detector, precision: Precision) -> Network:
    """Compile the network, for each batch size separately: dynamic shapes would be slower."""
    return in_precision(torch.compile(detector.model, dynamic=False), detector.device, precision)


def in_precision(model: Callable[[Tensor], Sequence[Tensor]], device: torch.device, precision: Precision) -> Network:
    def network(images: Tensor) -> Sequence[Tensor]:
        with autocast(device, precision):
            return model(images)

    return network


@torch.no_grad()
def onnxruntime(detector: Detector, _: Precision) -> Network:
    """Export the network to ONNX in memory, with an SSD's outputs, and load it into onnxruntime."""
    logger.info("exporting %s to ONNX; this may take a minute", detector.path)
    side = detector.model.input_size
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)  # a batch size of 1 would be exported as a constant
    model = copy.deepcopy(detector.model).to(memory_format=torch.contiguous_format)
    return load_onnx(trace_onnx(model, images, OUTPUTS).SerializeToString())


NETWORKS: dict[Program, Callable[[Detector, Precision], Network]] = {
    "eager": eager,
    "compiled": compiled,
    "onnxruntime": onnxruntime,
}


def build_all(
    detector: Detector, programs: Sequence[Program], precision: Precision, files: Sequence[Path]
) -> dict[Program, Runner]:
    """Build and run programs of a detector; leave out, with one line in the log, those that this network prevents.

    files: images to run on. Raises RunError if no program is left."""
    runners = {}
    for program in programs:
        try:
            runner = build(detector, program, precision)
            runner.run(files)
            runners[program] = runner
        except Exception as error:  # compilers and exporters raise many types of exception
            if program == "eager":
                raise
            logger.warning("%s: left out for %s: %s", program, detector.path, first_line(error))
    if not runners:
        raise RunError(f"{detector.path}: none of the programs {', '.join(programs)} runs; add --programs eager")
    return runners
