"""Command-line parsing that several commands share; imports only modules that load quickly (engine/start.py)."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from engine.strict_yaml import ConfigError, missing_file
from engine.text import did_you_mean, nearest


def positive(text: str) -> int:
    """Parse a positive integer; an argparse type."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive integer")
    return int(text)


DETECTORS = "an experiment directory, one of its checkpoints, released weights, or a published folder"
CLASSIFIERS = "an experiment or its checkpoint, a published folder, a config with weights, or public weights"


def check_config(path: str | Path) -> None:
    """Raise ConfigError if the file does not exist. The message suggests a similar name."""
    if not Path(path).exists():
        raise missing_file(Path(path))


def check_experiment(path: Path, expected: str = "an experiment directory, experiments/experiment_N") -> None:
    """Raise ConfigError if the path does not exist. The message suggests a similar name, or contains `expected`."""
    if not path.exists():
        near = nearest(path.name, [each.name for each in path.parent.glob("*")] if path.name else [])
        cure = did_you_mean(path.with_name(name) for name in near)
        raise ConfigError(f"{path}: no such folder or file{cure or f'; expected {expected}'}")


def parse_training(module: str, description: str, example: str, words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of a training command; `config` is None if an experiment is resumed with its own config.

    module: name of the training module. example: CONFIG and overrides to show in --help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=f"{description} Each run becomes experiments/experiment_N.",
        epilog=f"example: python -m {module} {example}\n"
        f"several GPUs: torchrun --standalone --nproc_per_node=4 -m {module} CONFIG ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="YAML file, see configs/; not needed with --resume")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="set a field of the config")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", type=Path, metavar="EXPERIMENT", help="resume this run from its newest checkpoint")
    start.add_argument(
        "--experiment", type=Path, metavar="DIRECTORY",
        help="train in this existing directory instead of a new experiment_N; resume if it has a checkpoint",
    )  # fmt: skip
    start.add_argument(
        "--dry-run", action="store_true", help="take two steps, report time and memory, create no experiment"
    )
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="folder of all experiments")
    arguments = parser.parse_intermixed_args(words)
    arguments.module = module
    if arguments.config and "=" in arguments.config:  # with --resume, overrides may be given without a config
        arguments.overrides.insert(0, arguments.config)
        arguments.config = None
    if arguments.config and Path(arguments.config).is_dir():
        parser.error(f"{arguments.config} is a folder; pass a YAML file, or resume an experiment with --resume FOLDER")
    if arguments.experiment and not arguments.experiment.is_dir():
        parser.error(f"--experiment {arguments.experiment}: no such directory")
    if not arguments.config and not arguments.resume:
        parser.error("pass a CONFIG, or an experiment to resume with --resume")
    if arguments.resume:
        check_experiment(arguments.resume)
    # A requeued job uses the config of its experiment. With --experiment, the check is later, so its errors are logged.
    if arguments.config and not arguments.experiment and not os.environ.get("SLURM_RESTART_COUNT"):
        check_config(arguments.config)
    return arguments
