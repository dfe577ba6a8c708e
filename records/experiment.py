"""Numbered experiment directories: every run keeps its config, environment, logs, scores and pictures in one.

experiments/experiment_7/
  README.md         what was trained, on what, how, the scores; written by the program
  config.yaml       the resolved config: rerun it and you rerun the experiment
  inputs.json       which data it read, by content
  environment.json  commit, versions, hardware, command, config, one entry per start
  train.log  metrics.jsonl  metrics.csv         the course of the training, drawn in curves.png
  results.json  image_statistics.npz            what came out: scores with their protocol and cost, and all that
                                                is needed to compute the score again on other choices of images
  detections.json  detections.png  examples/    the same for people and other programs (names are the task's)
  cell.json         which place of which grid this is, if a grid started it
  checkpoints/  running.lock                    git-ignored, as is what trackers keep: tensorboard/  wandb/
  status.json  output.log                       git-ignored: where a run is while it trains; what it printed
"""

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import ConfigClass, load_config
from engine.files import set_aside, write_text
from engine.logbook import logger
from engine.strict_yaml import ConfigError
from engine.terminal import printable

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "pycocotools", "hotcoco", "numpy", "pillow", "pydantic")
EXTRAS = ("diffusers",)  # what a run rests on if its task needs it
NAME = re.compile(r"experiment_(\d+)")
LOCK = "running.lock"
# Fields of a config that may differ within an experiment: where the data lies, how it is fed, what is kept, how often
# it is scored and who is told; not what is learned.
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
    """Every `root/experiment_N`, by N."""
    numbered = [(int(match[1]), path) for path in root.glob("*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def new_experiment(root: Path) -> Path:
    """Create the next free `root/experiment_N`, N from 1.

    Two runs that start at once never share one: mkdir fails for the later of the two, which tries the next.
    Raises ValueError if root is not a folder that can be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        number = max((int(NAME.fullmatch(path.name)[1]) for path in list_experiments(root)), default=0) + 1
        while True:
            path = root / f"experiment_{number}"
            with suppress(FileExistsError):
                path.mkdir()
                return path
            number += 1
    except OSError as error:
        raise ValueError(f"{root}: no experiment can be made there ({error.strerror}); see --experiments") from error


@contextmanager
def occupied(experiment: Path) -> Iterator[None]:
    """Hold the experiment's lock inside, so that no second run writes into it and others see that it is running.

    The system lets go of the lock when the process dies, however it dies. Raises ValueError if a run has it."""
    with open(experiment / LOCK, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{experiment}: another process is at work in it; wait for it, or stop it") from None
        except OSError:  # a file system without locks keeps no two runs apart
            pass
        yield


def is_running(experiment: Path) -> bool:
    """Whether a process, on any machine that shares the file system, holds the experiment's lock."""
    try:
        with open(experiment / LOCK, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def read_experiment_config(
    experiment: Path, config_class: type[ConfigClass], overrides: Sequence[str] = ()
) -> ConfigClass:
    """The config an experiment was trained with. Raises ConfigError if the folder is no experiment, or lost it."""
    path = experiment / "config.yaml"
    if not path.is_file():
        if not experiment.is_dir():
            raise ConfigError(f"{experiment}: no such folder; name an experiment directory, experiments/experiment_N")
        if list((experiment / "checkpoints").glob("*.pt")):
            raise ConfigError(f"{path}: lost, though there are checkpoints; {_config_cure(experiment)}")
        raise ConfigError(f"{experiment}: no config.yaml in it; name an experiment directory, experiments/experiment_N")
    return load_config(path, overrides, config_class)


def _config_cure(experiment: Path) -> str:
    """How to get back the config.yaml of an experiment: from the command that started it, if that is known."""
    try:
        command = read_environments(experiment)[0]["command"]
    except (ValueError, LookupError):
        command = None
    source = f"`{command}` started it: copy that CONFIG there" if command else "copy the CONFIG of its command there"
    return f"{source}, with the fields that the command replaced, then --resume {experiment}"


def describe_environment(hosts: Sequence[str], device: "torch.device") -> dict:
    """What a reader needs to judge or repeat this start: time, command, commit, versions, hardware.

    hosts: name of the machine of every process, by rank."""
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
            **{name: _version_if_installed(name) for name in EXTRAS},
        },
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
    """The Slurm job that this process runs in: its name among jobs ("12", "12_3" in an array), the number that it
    keeps when it is requeued, how often it was; None outside Slurm."""
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
    """Where this very command trained before its Slurm job was requeued; None if it was not, or had not begun to.

    The cluster counts, as another may have had a job of this number, and so does the command, as a job may run
    several."""
    job, command = slurm_job(), _command()
    if job is None or not job["restarts"]:
        return None
    for path in reversed(list_experiments(root)):
        try:
            starts = read_environments(path)
        except ValueError as error:  # most likely of an experiment that this job has nothing to do with
            logger.warning("%s", error)
            continue
        for start in starts:
            then = start.get("slurm") or {}
            same_job = (then.get("job_id"), then.get("cluster")) == (job["job_id"], job["cluster"])
            if same_job and _module(start["command"]) == _module(command):
                return path
    return None


def append_environment(experiment: Path, environment: dict) -> None:
    """Add one start to environment.json: the first run and every resumption keep their own entry."""
    try:
        starts = [*read_environments(experiment), environment]
    except ValueError as error:  # no reason to lose the run that it describes
        aside = set_aside(experiment / "environment.json")
        logger.warning("%s; kept as %s, and begun again with this start", error, aside.name)
        starts = [environment]
    write_text(experiment / "environment.json", json.dumps(starts, indent=2) + "\n")


def read_environments(experiment: Path) -> list[dict]:
    """What environment.json says of every start, oldest first; nothing if there was none yet.

    Raises ValueError naming the file if it is damaged."""
    path = experiment / "environment.json"
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({error}); move it away") from None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ValueError(f"{path}: damaged, expected a list with an object for every start; move it away")
    return starts


def write_readme(
    experiment: Path,
    title: str,
    facts: dict[str, str],
    scores: dict[str, float | None],
    pictures: dict[str, str],
) -> None:
    """The experiment's front page.

    facts: label to sentence, e.g. {"Model": "..."}; scores: name to value, None where undefined;
    pictures: file name to caption, shown where the file exists."""
    lines = [f"# {experiment.name}: {title}", ""]
    lines += [f"- **{label}**: {text}" for label, text in facts.items()]
    if scores:
        lines += ["", "| " + " | ".join(scores) + " |", "|" + " --- |" * len(scores)]
        lines += ["| " + " | ".join(map(shown_score, scores.values())) + " |"]
    for name, caption in pictures.items():
        if (experiment / name).exists():
            lines += ["", f"![{caption}]({name})"]
    write_text(experiment / "README.md", "\n".join(lines) + "\n")


def shown_score(value: float | None) -> str:
    """A score as people read it; None is one that nothing defines, such as the AP of a class without objects."""
    return "undefined" if value is None else f"{value:.4f}"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as aligned columns for a terminal: text to the left, numbers to the right; fractions, and
    None, as `shown_score` writes them."""
    columns = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        cells = [name, *(shown_score(v) if v is None or isinstance(v, float) else printable(str(v)) for v in values)]
        adjust = str.ljust if all(isinstance(value, str) for value in values) else str.rjust
        columns.append([adjust(cell, max(map(len, cells))) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _version_if_installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _command() -> str:
    """Return what was typed: torchrun starts its processes by a command of its own; srun starts the command itself."""
    arguments = sys.orig_argv[1:]
    if "GROUP_WORLD_SIZE" not in os.environ:
        return " ".join(["python", *arguments])
    module = arguments[arguments.index("-m") :] if "-m" in arguments else arguments
    nodes = os.environ["GROUP_WORLD_SIZE"]
    launcher = ["torchrun", *([f"--nnodes={nodes}"] if nodes != "1" else [])]
    return " ".join([*launcher, f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", *module])


def _module(command: str) -> str:
    """A command without what starts its processes, which may have counted them differently."""
    return re.sub(r"^(python|torchrun)( -(?!m )\S+)* ", "", command)


def _git(*arguments: str) -> str | None:
    """Output of a git command in the project's folder, None outside a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    """The processor's model name where Linux tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"model name\s*:\s*(.+)", text)
    return match[1] if match else platform.machine()
