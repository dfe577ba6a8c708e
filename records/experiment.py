"""Create and read experiment directories, one per run, with the run's config, environment, logs, scores and pictures.

experiments/experiment_7/
  README.md         summary of the run: model, data, recipe, scores
  config.yaml       the resolved config
  inputs.json       checksums of the annotations and images that were read
  environment.json  commit, versions, hardware, command and config of each start
  train.log  metrics.jsonl  curves.png          log and metrics of the training
  results.json  image_statistics.npz            scores, protocol and cost; per-image data to compare runs
  detections.json  detections.png  examples/    predictions, for people and other programs (depends on the task)
  corruptions.json  corruptions/  corruptions.png   scores on corrupted images, if they were measured (detectors)
  cell.json         grid, row, column and seed of the run, if a grid (ablation/) started it
  status.json       progress of the run, or how it ended (records/status.py)
  checkpoints/  running.lock  output.log        git-ignored, like tensorboard/ and wandb/ of the trackers
"""

import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from engine.config import ConfigClass, load_config
from engine.files import write_text
from engine.logbook import logger
from engine.strict_yaml import ConfigError
from engine.terminal import printable

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "pycocotools", "hotcoco", "numpy", "pillow", "pydantic", "diffusers", "timm")
NAME = re.compile(r"experiment_(\d+)")
# Config fields whose value `auto` is replaced when a new run starts, and the type of the value that replaces it.
AUTO_FIELDS = {"train.precision": str, "model.anchor_scales": tuple}
# Config fields that may change when a run is resumed, because they do not affect the trained weights.
FREE_FIELDS = {
    "data.root",
    "data.workers",
    "data.check_images",
    "train.checkpoint_every_steps",
    "train.eval_every_epochs",
    "train.keep_checkpoints",
    "train.trackers",
}


def list_experiments(root: Path) -> list[Path]:
    """Return every `root/experiment_N`, sorted by N."""
    numbered = [(int(match[1]), path) for path in root.glob("*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def new_experiment(root: Path) -> Path:
    """Create the next free `root/experiment_N`, counting from 1.

    Two runs that start at once never share a directory: mkdir fails for the second run, which then tries the next N.
    Raises ValueError if `root` is not a writable folder."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(
            max((int(path.name.split("_")[1]) for path in list_experiments(root)), default=0) + 1
        ):
            path = root / f"experiment_{number}"
            with suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise ValueError(f"{root}: cannot create an experiment here ({error.strerror}); set --experiments") from error


def read_experiment_config(
    experiment: Path, config_class: type[ConfigClass], overrides: Sequence[str] = ()
) -> ConfigClass:
    """Return the config of an experiment. Raises ConfigError if the folder has no config.yaml."""
    path = experiment / "config.yaml"
    if path.is_file():
        return load_config(path, overrides, config_class)
    if list((experiment / "checkpoints").glob("*.pt")):
        raise ConfigError(
            f"{path}: missing, but there are checkpoints; environment.json has the `command` that started the run; "
            f"copy its config file to this path, apply its overrides, then use --resume {experiment}"
        )
    problem = "has no config.yaml" if experiment.is_dir() else "no such folder"
    raise ConfigError(f"{experiment}: {problem}; expected an experiment directory, such as experiments/experiment_N")


def describe_environment(hosts: Sequence[str], device: "torch.device") -> dict:
    """Return time, command, commit, versions and hardware of this start, to assess or reproduce it.

    hosts: host name of every rank."""
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),  # as typed; under a launcher, the command of each process
        "argv": _argv(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "processes": len(hosts),
        "hosts": list(hosts),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "slurm": slurm_job(),
    }


def slurm_job() -> dict | None:
    """Return the Slurm job of this process, or None outside Slurm.

    job: name of the job in messages: "12", or "12_3" for a task of an array. job_id: SLURM_JOB_ID, which stays the same
    when the job is requeued. restarts: how often the job was requeued."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if "SLURM_JOB_ID" not in os.environ:
        return None
    return {
        "job": f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ["SLURM_JOB_ID"],
        "job_id": os.environ["SLURM_JOB_ID"],
        "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }


def requeued_experiment(root: Path) -> Path | None:
    """Return the experiment that this command trained before its Slurm job was requeued, or None.

    The job id alone does not identify a run: clusters use the same ids, and a job may run several commands."""
    job = slurm_job()
    if job is None or not job["restarts"]:
        return None
    for path in reversed(list_experiments(root)):
        try:
            starts = read_environments(path)
        except ValueError as error:  # most likely an experiment of a different job
            logger.warning("%s", error)
            continue
        for start in starts:
            slurm = start.get("slurm") or {}
            is_same_job = (slurm.get("job_id"), slurm.get("cluster")) == (job["job_id"], job["cluster"])
            if is_same_job and start.get("argv") == _argv():
                return path
    return None


def append_environment(experiment: Path, environment: dict) -> None:
    """Append one start of the run to environment.json. Every resume is a start of its own."""
    starts = [*read_environments(experiment), environment]
    write_text(experiment / "environment.json", json.dumps(starts, indent=2) + "\n")


def read_environments(experiment: Path) -> list[dict]:
    """Return the entry of every start in environment.json, oldest first. Raises ValueError if it is corrupt."""
    path = experiment / "environment.json"
    if not path.exists():
        return []
    try:
        return TypeAdapter(list[dict]).validate_json(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path}: corrupt, expected a list with an object for every start; move it away") from None


def commit_of(start: dict) -> str:
    """Return the commit of a start in environment.json: '1a2b3c4d5e6f' or '1a2b3c4d5e6f, with uncommitted changes'."""
    commit = (start.get("commit") or "unknown")[:12]
    return f"{commit}, with uncommitted changes" if start.get("uncommitted_changes") else commit


def write_readme(
    experiment: Path,
    title: str,
    facts: dict[str, str],
    scores: dict[str, float | None],
    pictures: dict[str, str],
) -> None:
    """Write the README.md of an experiment.

    facts: dict from label to text, e.g. {"Model": "..."}. scores: dict from name to value, None if undefined.
    pictures: dict from file name to caption; missing files are skipped."""
    lines = [f"# {experiment.name}: {title}", ""]
    lines += [f"- **{label}**: {text}" for label, text in facts.items()]
    if scores:
        lines += ["", "| " + " | ".join(scores) + " |", "|" + " --- |" * len(scores)]
        lines += ["| " + " | ".join(map(format_score, scores.values())) + " |"]
    for name, caption in pictures.items():
        if (experiment / name).exists():
            lines += ["", f"![{caption}]({name})"]
    write_text(experiment / "README.md", "\n".join(lines) + "\n")


def format_score(value: float | None) -> str:
    """Format a score. None means undefined, such as the AP of a class without objects."""
    return "undefined" if value is None else f"{value:.4f}"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Format rows with equal keys as a table for a terminal. Text is aligned left, numbers are aligned right.

    Floats and None are formatted by `format_score`."""
    columns = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        cells = [name, *(format_score(v) if v is None or isinstance(v, float) else printable(str(v)) for v in values)]
        align = str.ljust if all(isinstance(value, str) for value in values) else str.rjust
        columns.append([align(cell, max(map(len, cells))) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _version(name: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)


def _argv() -> list[str]:
    """Return the program's name and arguments. They do not depend on the number of processes."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in the project's folder, or None outside a repository."""
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()


def _cpu_name() -> str:
    """Return the processor's model name on Linux, or the name that `platform` reports."""
    with suppress(OSError):
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if match:
            return match[1]
    return platform.processor() or platform.machine()
