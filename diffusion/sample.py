"""Generate images with a trained diffusion model: a grid, and an animation of the sampling steps.

python -m diffusion.sample experiments/experiment_12 --classes 0,1,2 --steps 50 --guidance 2.0 --seed 0
python -m diffusion.sample experiments/experiment_12 --sampler dpm++ --steps 20 --output digits.png

On a CPU, the same command with the same number of threads generates bit-identical images.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import check_experiment, positive
from engine.start import start

if TYPE_CHECKING:
    import numpy as np
    import torch

    from diffusion.generator import TrainedGenerator

SAMPLERS = ("ddpm", "ddim", "dpm++")  # keys of SAMPLERS in diffusion/schedule.py
MAX_FRAMES = 40  # in the animation
MAX_ANIMATED = 4  # samples per class in the animation; all steps of all samples may not fit into memory


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.sample",
        description="Generate images with a trained diffusion model.",
        epilog="example: python -m diffusion.sample experiments/experiment_12 --classes 0,1,2 --guidance 2.0",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="diffusion experiment or its checkpoint")
    parser.add_argument("--classes", metavar="NAME,...", help="class names or numbers; a row each (default: all)")
    parser.add_argument("--per-class", type=positive, default=8, help="images per class (8)")
    add_sampling(parser)
    parser.add_argument("--output", type=Path, help="PNG file to write (default: in samples/ of the experiment)")
    arguments = parser.parse_args(words)
    if arguments.output and (not arguments.output.parent.is_dir() or arguments.output.suffix != ".png"):
        parser.error(f"--output {arguments.output}: expected a .png file in an existing folder")
    check_experiment(arguments.experiment)
    return arguments


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the sampling options, which this command shares with `diffusion.evaluate`."""
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim", help="sampling algorithm (ddim)")
    parser.add_argument("--steps", type=positive, default=50, help="number of sampling steps (50)")
    parser.add_argument(
        "--guidance", type=number(0, 100, float), default=2.0,
        help="guidance scale; 0: class ignored; 1: no guidance; more: clearer classes, less variety (2)",
    )  # fmt: skip
    parser.add_argument("--seed", type=number(0), default=0, help="random seed (0)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per batch (64)")


def number(low: float, high: float = math.inf, kind: type = int) -> Callable[[str], float]:
    """Return an argparse type that accepts numbers from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            noun = "an integer" if kind is int else "a number"
            limits = f">= {low}" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected {noun} {limits}")
        return value

    return parse


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Generate images, and write them as a grid and an animation."""
    import numpy as np
    import torch

    from diffusion.generator import load_generator
    from diffusion.pictures import draw_animation, draw_grid
    from diffusion.sampling import SamplingConfig

    generator = load_generator(arguments.experiment)
    classes = generator.labels_of(generator.class_ids if arguments.classes is None else arguments.classes.split(","))
    labels = torch.tensor(classes).repeat_interleave(arguments.per_class)
    generator.model.to(device)
    sampling = SamplingConfig(sampler=arguments.sampler, steps=arguments.steps, guidance=arguments.guidance)
    parts = generator.generate(sampling, labels.to(device), arguments.seed, arguments.batch_size, MAX_FRAMES)
    samples, frames = [], []
    for indices, steps in parts:
        samples.append(steps[-1].numpy())
        frames.append(steps[:, indices % arguments.per_class < MAX_ANIMATED].numpy())
    output = arguments.output or generator.checkpoint.parent.parent / "samples" / default_name(arguments, generator)
    output.parent.mkdir(exist_ok=True)
    draw_grid(output, in_rows(np.concatenate(samples), len(classes)))
    animation = output.with_suffix(".gif")
    draw_animation(animation, np.stack([in_rows(frame, len(classes)) for frame in np.concatenate(frames, axis=1)]))
    print(f"{len(labels)} images, one row per class: {', '.join(generator.class_ids[label] for label in classes)}")
    print(f"generated with {generator.checkpoint}; written to {output}; animation: {animation}")


def default_name(arguments: argparse.Namespace, generator: "TrainedGenerator") -> str:
    """Return a file name made of the checkpoint's name and the options."""
    classes = f"classes_{arguments.classes.replace(',', '_')}_" if arguments.classes else ""
    options = f"{classes}{arguments.per_class}_each_{arguments.sampler}_{arguments.steps}"
    return f"{generator.checkpoint.stem}_{options}_guidance_{arguments.guidance:g}_seed_{arguments.seed}.png"


def in_rows(images: "np.ndarray", rows: int) -> "np.ndarray":
    """Reshape images, (N, C, S, S) sorted by class, to (rows, columns, C, S, S)."""
    return images.reshape(rows, -1, *images.shape[1:])


if __name__ == "__main__":
    start(parse_arguments, main)
