"""Score samples by a classifier of this project, trained on the same classes.

python -m diffusion.evaluate experiments/experiment_12 --classifier experiments/experiment_13 --samples 500

agreement         share of the samples that the classifier assigns to the class that was asked for
frechet_distance  between samples and real validation images, in the classifier's last features: between two normal
                  distributions of their mean and covariance (Heusel et al., arXiv 1706.08500)
kernel_distance   the same by the unbiased squared maximum mean discrepancy with a cubic kernel, which fewer samples
                  do not make larger (Binkowski et al., arXiv 1801.01401)
fid               the Frechet distance in the features of the standard Inception network, if its weights are here

Each except fid is reported beside that of real images: agreement with the true classes, distances between as many
training and validation images. Compare Frechet distances only for the same number of images and the same classifier.
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
        description="Judge the samples of a diffusion model by a classifier.",
        epilog="example: python -m diffusion.evaluate experiments/experiment_12 --classifier experiments/experiment_13",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="of diffusion.training, or its checkpoint")
    parser.add_argument(
        "--classifier", required=True, metavar="EXPERIMENT|WEIGHTS", help="as classification.evaluate takes it"
    )
    parser.add_argument("--samples", type=number(2), default=500, help="how many to make, of all classes in turn (500)")
    parser.add_argument("--data", metavar="ROOT", help="folder of the real images (default: the config's)")
    add_sampling(parser)
    arguments = parser.parse_args(words)
    check_experiment(arguments.experiment)
    return arguments


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Score as the command line says."""
    from diffusion.quality import score

    score(arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
