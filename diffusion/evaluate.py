"""Score the samples of a diffusion model, with a classifier of this project trained on the same classes.

python -m diffusion.evaluate experiments/experiment_12 --classifier experiments/experiment_13 --samples 500

agreement         share of the samples that the classifier assigns to the class they were generated for
frechet_distance  Frechet distance between Gaussians fitted to the features of samples and of real validation images;
                  features are the inputs of the classifier's last layer (Heusel et al., arXiv 1706.08500)
kernel_distance   squared maximum mean discrepancy between the same features, with a cubic kernel; unbiased for any
                  number of images (Binkowski et al., arXiv 1801.01401)
fid               Frechet distance in the features of the standard Inception network, if its weights are present

Reference values from real images accompany all scores except fid: the agreement of validation images, and distances
between training and validation images. Frechet distances are comparable only for the same classifier and sample size.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.sample import add_sampling, number
from engine.arguments import check_experiment
from engine.start import start

if TYPE_CHECKING:
    import torch


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.evaluate",
        description="Score the samples of a diffusion model with a classifier.",
        epilog="example: python -m diffusion.evaluate experiments/experiment_12 --classifier experiments/experiment_13",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="diffusion experiment or its checkpoint")
    parser.add_argument(
        "--classifier", required=True, metavar="EXPERIMENT|WEIGHTS", help="classifier, as in classification.evaluate"
    )
    parser.add_argument("--samples", type=number(2), default=500, help="total number of samples of all classes (500)")
    parser.add_argument("--data", metavar="ROOT", help="data set of the real images (default: the config's data.root)")
    add_sampling(parser)
    arguments = parser.parse_args(words)
    check_experiment(arguments.experiment)
    return arguments


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Generate samples and score them."""
    from diffusion.quality import score

    score(arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
