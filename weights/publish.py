"""Publish an experiment: write its weights and a model card to a folder, in the layout of the Hugging Face Hub.

    python -m weights.publish experiments/experiment_3                             pip install -e '.[publish]'
    python -m weights.publish experiments/experiment_3 --output blood_cells --license cc-by-4.0

README.md          the model card: training data and recipe, scores with 95% intervals, limitations, licence
model.safetensors  the scored weights; its metadata contains the config, classes, scores and commit
config.yaml        the config, with local paths shortened to their last part
SHA256SUMS         checksums of these three files; `sha256sum --check SHA256SUMS` verifies them

The folder must be new or empty. Nothing is uploaded; use `hf upload USER/NAME FOLDER` for that.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import check_experiment
from engine.files import describe_write_errors, file_sha256, write_text
from engine.start import start

if TYPE_CHECKING:
    import torch

UNKNOWN = "unknown"  # the Hub's name for an unknown licence
LICENSES = (
    "mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0", UNKNOWN,
)  # fmt: skip
CARD, CONFIG = "README.md", "config.yaml"


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.publish",
        description="Write a finished experiment's weights, config and model card to a folder, ready to upload.",
        epilog="example: python -m weights.publish experiments/experiment_3 --license cc-by-4.0",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="a finished experiment")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder to write (default: saved_weights/experiment_N)"
    )
    parser.add_argument(
        "--license", choices=LICENSES, default=UNKNOWN, help=f"licence of the published weights (default: {UNKNOWN})"
    )
    arguments = parser.parse_args(words)
    check_experiment(arguments.experiment)
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Publish an experiment."""
    from engine.strict_yaml import ConfigError
    from records.experiment import format_score
    from weights.model_card import CHECKSUMS, card, format_interval, read_published
    from weights.release import PUBLISHED_WEIGHTS, save_release

    experiment = arguments.experiment
    folder = arguments.output or Path("saved_weights") / experiment.resolve().name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: already exists; delete it, or choose a different folder with --output")
    published = read_published(experiment)
    text = card(folder.resolve().name, published, arguments.license)
    with describe_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_release(folder / PUBLISHED_WEIGHTS, published.weights, published.release)
    write_text(folder / CARD, text)
    write_text(folder / CONFIG, published.release["config"])
    sums = [f"{file_sha256(folder / name)}  {name}\n" for name in (CARD, CONFIG, PUBLISHED_WEIGHTS)]
    write_text(folder / CHECKSUMS, "".join(sums))
    metric, score = published.results.metric, format_score(published.results.score)
    print(f"{metric} {score} (95%: {format_interval(published.intervals.get(metric)) or 'unknown'})")
    print(f"written to {folder}/; the model card is {CARD}")


if __name__ == "__main__":
    start(parse_arguments, main)
