"""Publish an experiment: its weights in a folder that describes them, as the Hugging Face hub expects it.

    python -m weights.publish experiments/experiment_3                             pip install -e '.[publish]'
    python -m weights.publish experiments/experiment_3 --output blood_cells --license cc-by-4.0

README.md          the model card: what it was trained on and how, its scores with 95% intervals, limits, licence
model.safetensors  the weights that were scored; config, classes, scores and commit in its metadata
config.yaml        the config, in which paths of this machine are cut to their last part
SHA256SUMS         of the three; `sha256sum --check SHA256SUMS` verifies them

Published again, the folder is written again, unless card or config were edited by hand: then nothing is written.
Nothing is uploaded: `hf upload USER/NAME FOLDER` does that.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import check_experiment
from engine.files import file_sha256, write_text, writing
from engine.start import start

if TYPE_CHECKING:
    import torch

    from weights.model_card import Published

UNKNOWN = "unknown"  # the hub's word for it
LICENSES = (
    "mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0", UNKNOWN,
)  # fmt: skip
CARD, CONFIG = "README.md", "config.yaml"


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.publish",
        description="Write a finished experiment's weights, config and model card to a folder, ready for a hub.",
        epilog="example: python -m weights.publish experiments/experiment_3 --license cc-by-4.0",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="directory of the experiment")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder to write (default: saved_weights/ and its name)"
    )
    parser.add_argument(
        "--license", choices=LICENSES, default=UNKNOWN, help=f"under which you publish them (default: {UNKNOWN})"
    )
    arguments = parser.parse_args(words)
    check_experiment(arguments.experiment)
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Publish an experiment."""
    from engine.strict_yaml import ConfigError
    from engine.text import listed
    from records.experiment import shown_score
    from weights.model_card import SUMS, card, read, shown_interval

    experiment = arguments.experiment
    folder = arguments.output or Path("saved_weights") / experiment.resolve().name
    if folder.exists() and not (folder / SUMS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists, and this command did not make it; name another by --output")
    if edited := find_edited(folder / SUMS):
        raise ConfigError(
            f"{folder}: {listed(edited)} edited by hand, so nothing is written; name another folder by --output, or "
            "move it away"
        )
    published = read(experiment)
    text = card(folder.resolve().name, published, arguments.license)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write(folder / SUMS, text, published)
    metric, score = published.results.metric, shown_score(published.results.score)
    print(f"{metric} {score} (95%: {shown_interval(published, metric) or 'unknown'})")
    print(f"written to {folder}/; {CARD} is the model card")


def find_edited(sums: Path) -> list[str]:
    """Return card and config if they differ from what an earlier call wrote, by its checksums."""
    if not sums.is_file():
        return []
    known = sums.read_text().splitlines()
    paths = [path for name in (CARD, CONFIG) if (path := sums.with_name(name)).is_file()]
    return [path.name for path in paths if f"{file_sha256(path)}  {path.name}" not in known]


def write(sums: Path, card: str, published: "Published") -> None:
    """Fill the folder of `sums`. After a kill at any point, none of its files looks edited.

    Raises OSError if it cannot be written."""
    from weights.release import PUBLISHED_WEIGHTS, save_release

    texts = {CARD: card, CONFIG: published.release["config"]}
    lines = "".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in texts.items())
    earlier = sums.read_text() if sums.is_file() else ""
    write_text(sums, earlier + lines)  # before the files
    weights = sums.with_name(PUBLISHED_WEIGHTS)
    save_release(weights, published.weights, published.release)
    for name, text in texts.items():
        write_text(sums.with_name(name), text)
    write_text(sums, f"{lines}{file_sha256(weights)}  {weights.name}\n")


if __name__ == "__main__":
    start(parse_arguments, main)
