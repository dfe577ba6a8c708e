"""What one is asked for first when something does not work: versions, devices, memory, cores, disk, Slurm; and whether
a config can be trained with here.

    python -m engine.doctor
    python -m engine.doctor configs/bccd.yaml data.root=/datasets/bccd

A line for each with ok, warn or fail; below what is not ok, what to do about it. With a config its task is started with
--dry-run: it reads and checks the data, finds the weights, takes two optimizer steps and makes no experiment.

Exit codes: 0 nothing failed, though there may be warnings; 1 something did; 2 bad command line.

What may itself be broken is imported by the check that looks at it, and nowhere else.
"""

from __future__ import annotations  # the doctor is also for a Python that is too old

import argparse
import importlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from engine.compute.machine import free_memory, memory_limit, usable_cores
from engine.compute.threads import THREADS, fit_threads

PROJECT = Path(__file__).parent.parent
GIB = 2**30
LEAST_MEMORY, LEAST_SHARED_MEMORY, LEAST_DISK = 4 * GIB, 1 * GIB, 10 * GIB  # below it, a warning
MOST_OF_MEMORY = 0.9  # taken by the dry run; more is too close, as some batches have more objects than others
# Compiled parts of the dependencies: they may be there, and not load.
COMPILED = ("numpy", "PIL.Image", "pycocotools.mask", "hotcoco", "safetensors", "matplotlib.figure")
FOR_DEVELOPERS = {"dev", "bench"}  # optional dependencies that nobody else misses
DRY_RUN_SECONDS = 900  # to read a large data set from slow storage takes a few minutes
# The engine knows no task, but what only a task's configs have: field -> module that trains with it, the first counts.
# (To ask each task's own config class would take a process each, and seconds, to find out the same.)
MARKS = {
    "data.train.annotations": "detection.training",
    "model.backbone": "detection.training",
    "diffusion": "diffusion.training",
    "data.root": "train_clf_imagenet",
}
MEMORY = re.compile(r"memory ([\d,]+) of ([\d,]+) MiB")  # in the last line of a dry run
WARNINGS = re.compile(r"warnings: (\d+)")  # there, too
INSTALL_AGAIN = "install again: pip install -e . in a new .venv"
LESS_MEMORY = "lower train.batch_size, and raise train.accumulation_steps by as much"
REMEDIES = {  # what the error of a dry run speaks of -> what to do; the first that fits counts
    r"does not fit the memory|out of memory": LESS_MEMORY,
    r"CUDA error|no kernel image": "the line `devices` above looks at each GPU by itself",
    r"^(a bug: )?(ModuleNotFound|Import)Error": INSTALL_AGAIN,
    r"^a bug: ": "report it, with what this page says",
    r"^batch_size ": "lower train.batch_size or train.accumulation_steps as it says",
    r"^model\.(weights|start_from)": "python -m weights list shows what can be fetched; null is a random start",
    r"^train\.trackers": "pip install -e '.[NAME]', or train.trackers=[]",
    r"\.ya?ml: |^(data|model|augment|loss|optim|train|eval|diffusion)\.": "mend the config, or the command line; "
    "docs/configs.md lists every field",
    r"data\.root|annotation|categor|image|class|MNIST|CIFAR": "data.root=FOLDER says where the data lie; docs/data.md "
    "says how to get, convert and check them",
}
KILLERS = {
    signal.SIGKILL: "out of memory? Lower train.batch_size or data.workers, or ask for more memory",
    signal.SIGBUS: "shared memory is full: data.workers=0, or a larger /dev/shm",
}

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One line of the report."""

    level: Level
    what: str
    remedy: str = ""  # what to do about it


Check = Callable[[], Iterator[Finding]]


def main(arguments: argparse.Namespace, _: None = None) -> None:
    """Check what the command line says; leave with the exit code."""
    checks = dict(CHECKS)
    if arguments.config:
        checks["config"] = lambda: check_config(arguments.config, arguments.overrides)
    levels = [finding.level for name, check in checks.items() for finding in told(name, check)]
    failed, warned = levels.count("fail"), levels.count("warn")
    print(f"\n{failed} failed, {warned} warning{'s' * (warned != 1)}, {len(levels) - failed - warned} ok")
    sys.exit(int(failed > 0))


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.doctor",
        description="Look at this machine, this installation and a config, and say what to mend. "
        "Exit code: 0 nothing failed, 1 something did.",
        epilog="example: python -m engine.doctor configs/bccd.yaml data.root=/datasets/bccd",
    )
    parser.add_argument("config", nargs="?", help="YAML file to train two steps with (--dry-run of its task)")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replaces a value of the config")
    return parser.parse_args(words)


def told(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check, each printed as it comes; a check that breaks is one, too."""
    try:
        for finding in check():
            show(name, finding)
            yield finding
    except Exception as error:  # of what is broken, which may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # A library that the loader of the system cannot load is an OSError without a number.
        is_library = isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno is None)
        cure = INSTALL_AGAIN if is_library else "the check itself broke, the others hold; report it with this line"
        finding = Finding("fail", f"{type(error).__name__}: {reason}", cure)
        show(name, finding)
        yield finding


def show(name: str, finding: Finding) -> None:
    """Print a line, and below it the remedy."""
    print(f"{finding.level:<5} {name:<13} {finding.what}", flush=True)
    if finding.remedy:
        print(f"{'':<19} -> {finding.remedy}", flush=True)


def gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


# ---- the installation --------------------------------------------------------------------------------------


def check_code() -> Iterator[Finding]:
    """Which version of the project this is, on which system."""
    is_known, commit = answer("git", "-C", str(PROJECT), "describe", "--always", "--dirty=, with uncommitted changes")
    yield Finding("ok", f"{PROJECT}, commit {commit if is_known else 'unknown'}; {platform.platform()}")


def check_python() -> Iterator[Finding]:
    """This Python is new enough; pyproject.toml is searched as text, for an older one has no tomllib to read it."""
    text = (PROJECT / "pyproject.toml").read_text()
    least = re.search(r'^requires-python = ">=(\d+)\.(\d+)"$', text, flags=re.MULTILINE)
    is_right = sys.version_info[:2] >= tuple(map(int, least.groups()))
    found = f"{platform.python_version()} in {sys.prefix}"
    cure = "make a new environment with a newer one: python3.12 -m venv .venv, or conda create -n ssd python=3.12"
    wanted = ".".join(least.groups())
    yield Finding("ok", found) if is_right else Finding("fail", f"{found}, expected {wanted} or newer", cure)


def check_packages() -> Iterator[Finding]:
    """What pyproject.toml asks for is there, and those parts of it that are compiled can be loaded."""
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    missing = [text for text in map(unmet, project["dependencies"]) if text]
    if missing:
        yield Finding("fail", "; ".join(missing), "pip install -e .")
        return
    for module in COMPILED:
        importlib.import_module(module)
    yield Finding("ok", f"all {len(project['dependencies'])} that pyproject.toml asks for")
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name not in FOR_DEVELOPERS}
    absent = [name for name, needs in extras.items() if any(map(unmet, needs))]
    there = [name for name in extras if name not in absent]
    text = f"extras: {', '.join(there) or 'none'}"
    yield Finding("ok", text + (f"; not installed: {', '.join(absent)} (pip install -e '.[NAME]')" if absent else ""))


def unmet(need: str) -> str:
    """What is wrong with a requirement such as "torch>=2.10": "torch 2.9.1, expected >=2.10"; empty if it is met."""
    from packaging.requirements import Requirement

    requirement = Requirement(need)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    wanted = requirement.specifier
    return "" if wanted.contains(version, prereleases=True) else f"{requirement.name} {version}, expected {wanted}"


def check_torch() -> Iterator[Finding]:
    """torch and torchvision are of one release, and torchvision's compiled part can be used.

    Each torchvision says in its own metadata which torch it was compiled for; there is no table to fall behind."""
    together = "pip install --upgrade torch torchvision, both at once and from the same index"
    import torch

    versions = f"torch {torch.__version__}, torchvision {metadata.version('torchvision')}"
    needs = [need for need in metadata.requires("torchvision") or () if re.match(r"torch\b", need)]
    if wrong := [text for text in map(unmet, needs) if text]:
        yield Finding("fail", f"{versions}: made for another torch ({wrong[0]})", together)
        return
    try:
        import torchvision

        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:
        yield Finding("fail", f"{versions}: its operators do not load ({str(error).splitlines()[0]})", together)
        return
    yield Finding("ok", f"{versions}: match, operators load; CUDA {torch.version.cuda or 'none'}")


# ---- the machine -------------------------------------------------------------------------------------------


def check_devices() -> Iterator[Finding]:
    """Every GPU works, and is free."""
    import torch

    if not torch.cuda.is_available():
        _, listed = answer("nvidia-smi", "-L")
        if "GPU 0" not in listed:
            yield Finding("ok", "no GPU: training runs on the CPU")
        elif "CUDA_VISIBLE_DEVICES" in os.environ:
            hidden = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r}"
            yield Finding("warn", f"there are GPUs, hidden by {hidden}", "unset it, unless that is meant")
        elif torch.version.cuda is None:
            cure = "pip install --upgrade torch torchvision, from PyPI or pytorch.org's index for CUDA"
            yield Finding("warn", f"there are GPUs, but torch {torch.__version__} was built without CUDA", cure)
        else:
            cure = (
                f"a driver for CUDA {torch.version.cuda}, or a torch for the driver (nvidia-smi tells its CUDA version)"
            )
            yield Finding("warn", "there are GPUs, but torch cannot use them", cure)
        return
    import torchvision

    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        try:
            free, total = torch.cuda.mem_get_info(device)
            torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), torch.ones(1, device=device), 0.5)
        except RuntimeError as error:
            cure = "nvidia-smi shows whether another program has it, or it is broken; else a torch made for this GPU"
            yield Finding("fail", f"cuda:{index} cannot be used: {str(error).splitlines()[0]}", cure)
            continue
        text = f"cuda:{index} {torch.cuda.get_device_name(device)}, {gib(total)}, {gib(free)} free"
        if free < 0.8 * total:
            yield Finding("warn", text, "nvidia-smi shows who has the rest")
        else:
            yield Finding("ok", text)


def check_processes() -> Iterator[Finding]:
    """What processes of one run talk through."""
    import torch

    communication = torch.distributed
    if not communication.is_available() or not communication.is_gloo_available():
        yield Finding("warn", "no gloo: one process only", "a torch that was built with torch.distributed")
    elif torch.cuda.is_available() and not communication.is_nccl_available():
        yield Finding("warn", "gloo, but no NCCL: one GPU only", "a torch from PyPI or pytorch.org's index for CUDA")
    elif torch.cuda.is_available():
        yield Finding("ok", f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))} between GPUs, gloo for the rest")
    else:
        yield Finding("ok", "gloo, on the CPU")


def check_precision() -> Iterator[Finding]:
    """Report what `train.precision: auto` becomes here."""
    import torch

    from engine.compute.precision import describe_device, is_in_hardware, resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision("auto", device)
    emulated = "" if is_in_hardware("bf16", device) else "; bf16 would be emulated, at a tenth of the speed"
    yield Finding("ok", f"train.precision auto is {precision} on {describe_device(device)}{emulated}")


def check_cores() -> Iterator[Finding]:
    """PyTorch starts no more threads than there are cores; commands see to that unless the user has set a number."""
    import torch

    usable, threads = usable_cores(), torch.get_num_threads()
    text = f"{usable:g} of {os.cpu_count()} usable; {threads} threads"
    if threads > usable:
        chosen = f", as {THREADS}={os.environ[THREADS]} says" if THREADS in os.environ else ""
        cure = f"unset {THREADS}, or export {THREADS}={max(1, int(usable))}"
        yield Finding("warn", f"{text}{chosen}: more threads than cores slow each other down", cure)
    else:
        yield Finding("ok", f"{text}; data.workers come on top of these")


def check_memory() -> Iterator[Finding]:
    free = min(free_memory(), memory_limit())
    text = f"{gib(memory_limit())} for this process, {gib(free_memory())} free on the machine"
    cure = "end other programs, or ask for more (sbatch --mem, docker --memory)"
    yield Finding("ok", text) if free >= LEAST_MEMORY else Finding("warn", text, cure)


def check_shared_memory() -> Iterator[Finding]:
    """Loader processes hand over their batches in it."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Finding("ok", "not a folder on this system")
        return
    usage = shutil.disk_usage(folder)
    text = f"{gib(usage.free)} of {gib(usage.total)} free in {folder}"
    cure = "docker run --shm-size=8g (or --ipc=host), or data.workers=0; otherwise loader processes may die of SIGBUS"
    yield Finding("ok", text) if usage.free >= LEAST_SHARED_MEMORY else Finding("warn", text, cure)


def check_disk() -> Iterator[Finding]:
    """Room for experiments, and the right to write them."""
    wanted = Path("experiments").absolute()
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{gib(free)} free in {folder}"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        cure = "go to a folder that can be, or name one by --experiments"
        yield Finding("fail", f"{folder}: cannot be written ({error.strerror})", cure)
        return
    cure = "make room: a run keeps three checkpoints or so, of three times its weights' size"
    yield Finding("ok", text) if free >= LEAST_DISK else Finding("warn", text, cure)


def check_slurm() -> Iterator[Finding]:
    """Whether jobs can be sent from here."""
    job = os.environ.get("SLURM_JOB_ID")
    inside = f"this is job {job}" if job else ""
    if not shutil.which("sinfo"):
        yield Finding("ok", ", but ".join(filter(None, ["none here", inside])))
        return
    is_up, told = answer("sinfo", "--noheader", "--format=%P (%a, %D nodes)")
    names = {line.partition(" ")[0].rstrip("*") for line in told.splitlines()}
    unknown = [name for name in os.environ.get("SBATCH_PARTITION", "").split(",") if name and name not in names]
    if not is_up or not told:
        cure = "needed only to send jobs: from a login node; sbatch/cluster.env has what is yours to set"
        yield Finding("warn", f"installed, but sinfo names no partition: {told}", cure)
        return
    if unknown:
        what = f"SBATCH_PARTITION is {', '.join(unknown)}, expected some of {', '.join(sorted(names))}"
        yield Finding("fail", what, "mend it in sbatch/cluster.env, and source that again")
        return
    yield Finding("ok", "; ".join(filter(None, [inside, f"partitions {', '.join(told.splitlines())}"])))


def answer(*command: str) -> tuple[bool, str]:
    """Whether a command worked, and what it printed, or the last line of its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    if done.returncode == 0:
        return True, done.stdout.strip()
    return False, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


CHECKS: dict[str, Check] = {
    "code": check_code,
    "python": check_python,
    "packages": check_packages,
    "torch": check_torch,
    "devices": check_devices,
    "processes": check_processes,
    "precision": check_precision,
    "cores": check_cores,
    "memory": check_memory,
    "shared memory": check_shared_memory,
    "disk": check_disk,
    "Slurm": check_slurm,
}


# ---- a config ----------------------------------------------------------------------------------------------


def check_config(path: str, overrides: Sequence[str]) -> Iterator[Finding]:
    """The config is one of a task, and that task can train with it here: data, weights, memory."""
    from engine.config import read_overridden
    from engine.strict_yaml import ConfigError

    try:
        data = read_overridden(path, overrides)
    except ConfigError as error:
        yield Finding("fail", str(error), "mend the config, or the command line")
        return
    if "task" in data:
        configs = ", ".join(dict.fromkeys(row["config"] for row in data.get("rows", ()) if "config" in row))
        yield Finding("fail", f"{path}: a grid, of {data['task']}", f"name one of its configs: {configs}")
        return
    module = task_of(data)
    if module is None:
        yield Finding(
            "fail", f"{path}: a config of no task, it has none of {', '.join(MARKS)}", "begin from one in configs/"
        )
        return
    print(f"{'':<19} python -m {shlex.join([module, path, *overrides, '--dry-run'])}:", flush=True)
    yield dry_run([sys.executable, "-m", module, path, *overrides, "--dry-run"])


def task_of(data: dict[str, Any]) -> str | None:
    """The module that trains with a config, by the fields that it has."""

    def has(field: str) -> bool:
        node: Any = data
        for key in field.split("."):
            if not isinstance(node, dict) or key not in node:
                return False
            node = node[key]
        return True

    return next((module for field, module in MARKS.items() if has(field)), None)


def dry_run(command: Sequence[str]) -> Finding:
    """Start a task with --dry-run, and pass on what it says of its data and weights."""
    last = ""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        watch = threading.Timer(DRY_RUN_SECONDS, process.kill)
        watch.start()
        for line in process.stdout:
            if last:
                print(f"{'':<19} {last}", flush=True)
            last = line.rstrip()
        code, is_late = process.wait(), not watch.is_alive()
        watch.cancel()
        errors.seek(0)
        said = errors.read().strip()
    if is_late:
        cure = "storage that hangs? Start the same by hand, with data.workers=0, to see where it stays"
        return Finding("fail", f"the dry run did not end in {DRY_RUN_SECONDS} s", cure)
    if code == 0:
        if not (memory := MEMORY.search(last)):
            return Finding("warn", f"{last!r} does not say the memory that it took", "look at it while it trains")
        used, total = (int(text.replace(",", "")) for text in memory.groups())
        if used > MOST_OF_MEMORY * total:
            return Finding("warn", last, LESS_MEMORY)
        warned = WARNINGS.search(last)
        return Finding("warn", last, "see the lines above") if warned and int(warned[1]) else Finding("ok", last)
    if last:
        print(f"{'':<19} {last}", flush=True)
    if code < 0:
        killer = signal.Signals(-code)
        cure = KILLERS.get(killer, "do torch and torchvision fit together? Install both again in a new .venv")
        return Finding("fail", f"the dry run was killed by {killer.name}", cure)
    *before, error = re.split(r"^error[^:\n]*: ", said, flags=re.MULTILINE)  # with the lines that belong to it
    if not before:
        error = (said.splitlines() or [f"exit code {code}, without a word"])[-1]
    cures = (cure for pattern, cure in REMEDIES.items() if re.search(pattern, error))
    return Finding("fail", error, next(cures, "docs/faults.md says what to do about most of what may happen"))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGPIPE):  # there is nothing to save, and nothing to say
        signal.signal(number, signal.SIG_DFL)
    command_line = parse_arguments(sys.argv[1:])
    fit_threads()
    main(command_line)  # not by engine.start, which imports packages that may be broken
