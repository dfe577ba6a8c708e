"""Report what to look at first when something does not work: versions, devices, cores, memory, disk, locks.

    python -m engine.doctor

Prints all versions, for a bug report (torch.utils.collect_env), then one line per check: ok, warn or fail, and the
cure. It reads no config: a training command with --dry-run tries one, with its data, its weights and its memory.

Exit codes: 0 nothing failed, though there may be warnings; 1 something did; 2 bad command line.
"""

import argparse
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine.compute.machine import memory_limit, usable_cores
from engine.compute.threads import fit_threads
from engine.start import start

GIB = 2**30

Finding = tuple[str, str, str]  # ok, warn or fail; what was found; the cure unless it is ok


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    return argparse.ArgumentParser(
        prog="python -m engine.doctor",
        description="Check this machine and this installation. To try a config, start its training with --dry-run.",
        epilog="example: python -m engine.doctor",
    ).parse_args(words)


def main(arguments: argparse.Namespace, _: None) -> None:
    """Print the versions and run every check; exit with 1 if one failed."""
    findings = [finding for check in CHECKS for finding in run_check(check)]
    sys.exit(int(any(level == "fail" for level, _, _ in findings)))


def run_check(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run a check and print what it found; one that raises is a failure."""
    try:
        findings = list(check())
    except Exception as error:  # a broken library may raise anything
        what = f"{check.__name__}: {type(error).__name__}: {error}"
        findings = [("fail", what, "install torch and torchvision again, both at once and from the same index")]
    for level, what, cure in findings:
        print(f"{level:<5} {what}" + (f"\n      -> {cure}" if level != "ok" else ""), flush=True)
    return findings


def check_versions() -> Iterator[Finding]:
    """Print what torch knows of this system."""
    from torch.utils.collect_env import get_pretty_env_info

    yield "ok", f"versions and system:\n\n{get_pretty_env_info()}\n", ""


def check_devices() -> Iterator[Finding]:
    """Compute with torch and torchvision on the CPU and on every GPU."""
    import torch
    import torchvision

    from engine.compute.precision import describe_device, resolve_precision

    for device in (torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))):
        try:
            matrix = torch.eye(4, dtype=torch.bfloat16, device=device)
            boxes = (matrix @ matrix).float()
            torchvision.ops.nms(boxes, boxes[0], 0.5).cpu()
            precision = resolve_precision("auto", device)
            yield "ok", f"{device}: {describe_device(device)}; train.precision auto is {precision}", ""
            if device.type == "cuda":
                free, total = torch.cuda.mem_get_info(device)
                yield room(f"memory of {device}", free, 0.8 * total, "nvidia-smi shows who has the rest")
        except RuntimeError as error:
            cure = "torch and torchvision of one release? Does nvidia-smi show that the GPU is in use, or broken?"
            yield "fail", f"{device}: cannot be used: {str(error).splitlines()[0]}", cure
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        cure = "unset CUDA_VISIBLE_DEVICES, update the driver, or install a torch that was built for CUDA"
        yield "warn", "nvidia-smi is installed, but torch sees no GPU", cure


def check_cores() -> Iterator[Finding]:
    """Compare PyTorch's threads with the cores; commands fit them unless the user has set a number."""
    fit_threads()
    import torch

    usable, threads = usable_cores(), torch.get_num_threads()
    cure = f"more threads than cores slow each other down: export OMP_NUM_THREADS={max(1, int(usable))}, or unset it"
    yield "warn" if threads > usable else "ok", f"{usable:g} of {os.cpu_count()} cores, {threads} threads", cure


def check_room() -> Iterator[Finding]:
    """Look at memory and disk, and write and lock a file where experiments are kept."""
    yield room("memory of this process", memory_limit(), 4 * GIB, "ask for more: sbatch --mem, docker --memory")
    if (shared := Path("/dev/shm")).is_dir():  # loader processes hand over batches in it
        cure = "docker run --shm-size=8g, or data.workers=0; otherwise loader processes may die of SIGBUS"
        yield room(str(shared), shutil.disk_usage(shared).free, GIB, cure)
    wanted = Path("experiments").absolute()
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        cure = "name a folder by --experiments that can be; mount NFS with locks"
        yield "fail", f"{folder}: cannot be written or locked: {error.strerror}", cure
    cure = "make room: a run keeps about three checkpoints, each three times as large as its weights"
    yield room(str(folder), shutil.disk_usage(folder).free, 10 * GIB, cure)


def room(what: str, free: float, least: float, cure: str) -> Finding:
    """Return a warning if fewer than `least` of `free` bytes are there."""
    return "ok" if free >= least else "warn", f"{what}: {free / GIB:,.1f} GiB", cure


CHECKS = (check_versions, check_devices, check_cores, check_room)

if __name__ == "__main__":
    start(parse_arguments, main, on_device=False)
