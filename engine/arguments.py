"""Parts of command lines that several commands share; imports only what loads quickly (engine/start.py)."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from engine.strict_yaml import ConfigError, missing_file
from engine.text import did_you_mean, nearest


def positive(text: str) -> int:
    """Return a number from 1 up of a command line, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 up")
    return int(text)


DETECTORS = "an experiment directory, a checkpoint in one, released weights, or a published folder"
CLASSIFIERS = "an experiment, its checkpoint, a published folder, a config with weights, a public file or its name"


def check_config(path: str | Path) -> None:
    """Raise ConfigError, which suggests the nearest name, if there is no such file."""
    if not Path(path).exists():
        raise missing_file(Path(path))


def check_experiment(path: Path, wanted: str = "an experiment directory, experiments/experiment_N") -> None:
    """Raise ConfigError, which suggests the nearest name, if there is no such folder or file."""
    if not path.exists():
        near = nearest(path.name, [each.name for each in path.parent.glob("*")] if path.name else [])
        cure = did_you_mean(path.with_name(name) for name in near)
        raise ConfigError(f"{path}: no such folder or file{cure or f'; name {wanted}'}")


def parse_training(module: str, description: str, example: str, words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of a training command; `config` is None when an experiment is resumed with its own.

    module: that is started. example: CONFIG and overrides, for --help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=f"{description} Each run becomes experiments/experiment_N.",
        epilog=f"example: python -m {module} {example}\n"
        f"several GPUs: torchrun --standalone --nproc_per_node=4 -m {module} CONFIG ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="YAML file, see configs/; with --resume the experiment's own")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replaces a value of the config")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", type=Path, metavar="EXPERIMENT", help="continue after its newest checkpoint")
    start.add_argument(
        "--experiment", type=Path, metavar="DIRECTORY",
        help="an existing directory to train in, instead of the next free number; resumes if it has a checkpoint",
    )  # fmt: skip
    start.add_argument(
        "--dry-run", action="store_true", help="take two steps, report seconds and memory, and make no experiment"
    )
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="where runs are kept")
    arguments = parser.parse_intermixed_args(words)
    arguments.module = module
    if arguments.config and "=" in arguments.config:  # with --resume, overrides may come without a config
        arguments.overrides.insert(0, arguments.config)
        arguments.config = None
    if arguments.config and Path(arguments.config).is_dir():
        parser.error(f"{arguments.config} is a folder; name a CONFIG, or continue an experiment: --resume FOLDER")
    if arguments.experiment and not arguments.experiment.is_dir():
        parser.error(f"--experiment {arguments.experiment}: no such directory")
    if not arguments.config and not arguments.resume:
        parser.error("name a CONFIG, or an experiment to --resume")
    if arguments.resume:
        check_experiment(arguments.resume)
    # A requeued job reads its experiment's own config; what is wrong with an --experiment's goes to its log, too.
    if arguments.config and not arguments.experiment and not os.environ.get("SLURM_RESTART_COUNT"):
        check_config(arguments.config)
    return arguments
