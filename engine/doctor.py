"""Check this machine and installation when something does not work: versions, devices, memory, disk, locks.

    python -m engine.doctor

Prints all versions for a bug report (torch.utils.collect_env), then a line per check: ok, warn or fail, and the cure.
It reads no config. To test a config with its data, weights and memory needs, run its training command with --dry-run.

Exit codes: 0 no check failed (there may be warnings); 1 a check failed; 2 invalid command line.
"""

import argparse
import fcntl
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine.compute.machine import memory_limit
from engine.start import start

GIB = 2**30

Finding = tuple[str, str, str]  # level (ok, warn or fail), text, cure (not printed if ok)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    return argparse.ArgumentParser(
        prog="python -m engine.doctor",
        description="Check this machine and this installation. To test a config, run its training with --dry-run.",
        epilog="example: python -m engine.doctor",
    ).parse_args(words)


def main(arguments: argparse.Namespace, _: None) -> None:
    """Print the versions and run every check; exit with 1 if one failed."""
    findings = [finding for check in CHECKS for finding in run_check(check)]
    sys.exit(int(any(level == "fail" for level, _, _ in findings)))


def run_check(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run a check; print and return its findings. A check that raises an exception has failed."""
    try:
        findings = list(check())
    except Exception as error:  # a broken library may raise anything
        what = f"{check.__name__}: {type(error).__name__}: {error}"
        findings = [("fail", what, "reinstall torch and torchvision together, from the same package index")]
    for level, what, cure in findings:
        print(f"{level:<5} {what}" + (f"\n      -> {cure}" if level != "ok" else ""), flush=True)
    return findings


def check_versions() -> Iterator[Finding]:
    """Report the versions of torch, the libraries, the system and its hardware."""
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
                yield check_free(f"free memory of {device}", free, 0.8 * total, "see the GPU's processes in nvidia-smi")
        except RuntimeError as error:
            cure = "install matching torch and torchvision; check in nvidia-smi whether the GPU is in use or broken"
            yield "fail", f"{device}: cannot be used: {str(error).splitlines()[0]}", cure
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        cure = "unset CUDA_VISIBLE_DEVICES, update the driver, or install a build of torch with CUDA"
        yield "warn", "nvidia-smi is installed, but torch finds no GPU", cure


def check_memory_and_disk() -> Iterator[Finding]:
    """Check free memory and disk space, and whether files can be written and locked in the folder of experiments."""
    yield check_free("memory for this process", memory_limit(), 4 * GIB, "request more: sbatch --mem, docker --memory")
    if (shared := Path("/dev/shm")).is_dir():  # loader processes transfer batches through it
        cure = "use docker run --shm-size=8g, or set data.workers=0; otherwise loader processes may die of SIGBUS"
        yield check_free(f"free space in {shared}", shutil.disk_usage(shared).free, GIB, cure)
    root = Path("experiments").absolute()
    folder = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        cure = "choose a different folder with --experiments, or mount NFS with locks"
        yield "fail", f"{folder}: cannot be written or locked: {error.strerror}", cure
    cure = "free some space: a run keeps about three checkpoints, each three times as large as the model's weights"
    yield check_free(f"free space in {folder}", shutil.disk_usage(folder).free, 10 * GIB, cure)


def check_free(what: str, free: float, least: float, cure: str) -> Finding:
    """Return a finding about `free` bytes: a warning if `free` is less than `least`."""
    return "ok" if free >= least else "warn", f"{what}: {free / GIB:,.1f} GiB", cure


CHECKS = (check_versions, check_devices, check_memory_and_disk)

if __name__ == "__main__":
    start(parse_arguments, main, on_device=False)
