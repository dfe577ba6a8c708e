"""How good samples are, judged by a classifier: one of this project, trained on the same classes.

python -m diffusion.score experiments/experiment_12 --classifier experiments/experiment_13 --samples 500

agreement         share of the samples that the classifier takes for the class that was asked for
frechet_distance  between samples and real validation images, in the classifier's last features: between two normal
                  distributions of their mean and covariance (Heusel et al., arXiv 1706.08500)
kernel_distance   the same by the unbiased squared maximum mean discrepancy with a cubic kernel, which fewer samples
                  do not make larger (Binkowski et al., arXiv 1801.01401)
fid               the Frechet distance in the features of the standard Inception network, if its weights are here

Each but fid stands beside what real images get: the classifier's agreement with the true classes, and the distances
between as many training and validation images. Samples may agree more often than these do, for guidance makes them
clearer. Frechet distances depend on the number of images and on the network: compare them for the same numbers of both
and the same classifier only.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from classification.classifier import Classifier, load_classifier
from data import LabelledImages, LabelledSamples, as_rgb, normalize_images
from diffusion.data import build_transform, read_split
from diffusion.generator import TrainedGenerator, load_generator
from diffusion.pictures import draw_grid
from diffusion.sample import add_sampling
from diffusion.sampling import SamplingConfig
from engine.command import positive, run_command, said_once
from engine.compute.precision import autocast, inference_precision
from engine.experiment import shown_score
from engine.logbook import logger, progress_bar
from engine.storage.files import write_text
from engine.terminal import printable

INCEPTION = Path("saved_weights/weights-inception-2015-12-05-6726825d.pth")  # torch-fidelity's name of it
MISSING = "{} is not installed: pip install -e '.[diffusion]'"
COLUMNS = 10  # of the grid


class Seen(NamedTuple):
    """What a classifier makes of N images."""

    features: Tensor  # (N, D) float32, what its last layer is given
    guesses: np.ndarray  # (N,) int64, its outputs


def main(device: torch.device) -> None:
    """Score as the command line says, print the scores, keep score.json and a grid of the samples."""
    arguments = said_once(parse_arguments)
    generator, classifier = load_generator(arguments.experiment), load_classifier(arguments.classifier)
    outputs = classifier.outputs_of(generator.class_ids)
    data = generator.config.data
    if arguments.data:
        data = data.model_copy(update={"root": arguments.data})
    train, val = (read_split(data, split) for split in ("train", "val"))
    labels = torch.arange(arguments.samples) % len(generator.class_ids)
    generator.model.to(device)
    classifier.model.to(device)
    sampling = SamplingConfig(sampler=arguments.sampler, steps=arguments.steps, guidance=arguments.guidance)
    parts = generator.generate(sampling, labels.to(device), arguments.seed, arguments.batch_size)
    samples = torch.cat([images[-1] for _, images in parts])  # (N, C, S, S)
    others, real = (some_of(images, generator, arguments.samples) for images in (train, val))
    (other_images, _), (real_images, real_labels) = others, real
    fake_seen, other_seen, real_seen = (
        look(classifier, images, arguments.batch_size, device) for images in (samples, other_images, real_images)
    )
    right = fake_seen.guesses == outputs[labels.numpy()]
    scores = {
        "agreement": float(right.mean()),
        "agreement_of_real": float((real_seen.guesses == outputs[real_labels]).mean()),
        "frechet_distance": frechet_distance(real_seen.features, fake_seen.features),
        "frechet_distance_of_real": frechet_distance(real_seen.features, other_seen.features),
        "kernel_distance": kernel_distance(real_seen.features, fake_seen.features),
        "kernel_distance_of_real": kernel_distance(real_seen.features, other_seen.features),
        "fid": inception_distance(real_images, samples, arguments.batch_size, device),
    }
    agreement = {
        name: float(right[labels == label].mean()) for label, name in enumerate(generator.class_ids[: len(labels)])
    }
    record = {
        "weights": str(generator.checkpoint),
        "classifier": str(classifier.path),
        "samples": len(samples),
        "real_images": len(real_images),
        "validation_images_sha256": val.digest,
        "sampling": sampling.model_dump(),
        "seed": arguments.seed,
        "scores": scores,
        "agreement_by_class": agreement,
    }
    folder = generator.checkpoint.parent.parent
    write_text(folder / "score.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    draw_grid(folder / "score_samples.png", by_class(samples.numpy(), len(generator.class_ids)))
    for name, share in agreement.items():
        print(f"{share:.4f}  {printable(name)}")
    print("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
    print(f"written to {folder / 'score.json'}; samples: {folder / 'score_samples.png'}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.score",
        description="Judge the samples of a diffusion model by a classifier.",
        epilog="example: python -m diffusion.score experiments/experiment_12 --classifier experiments/experiment_13",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="of diffusion.training, or its checkpoint")
    parser.add_argument(
        "--classifier", required=True, metavar="EXPERIMENT|WEIGHTS", help="as train_clf_imagenet.py evaluate takes it"
    )
    parser.add_argument("--samples", type=several, default=500, help="how many to make, of all classes in turn (500)")
    parser.add_argument("--data", metavar="ROOT", help="where the real images lie now (default: the config's)")
    add_sampling(parser)
    return parser.parse_args()


def several(text: str) -> int:
    """A number of samples, for argparse: one has no spread."""
    if positive(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 2 up")
    return int(text)


# ---- images --------------------------------------------------------------------------------------------------


def some_of(images: LabelledImages, generator: TrainedGenerator, count: int) -> tuple[Tensor, np.ndarray]:
    """Real images, spread evenly over a split, as the generator was shown them, and their labels.

    Returns (N, C, S, S) uint8 and (N,) int64; N is count, or all there are."""
    config = generator.config
    samples = LabelledSamples(images, build_transform(config.data, config.model.input_size, train=False), seed=0)
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return torch.stack([samples[0, int(index)]["image"] for index in chosen]), images.labels[chosen]


def by_class(samples: np.ndarray, classes: int) -> np.ndarray:
    """The first samples of each class as rows, for a grid; samples: (N, C, S, S), the classes in turn."""
    classes = min(classes, len(samples))
    columns = min(COLUMNS, len(samples) // classes)
    return samples[: columns * classes].reshape(columns, classes, *samples.shape[1:]).swapaxes(0, 1)


@torch.inference_mode()
def look(classifier: Classifier, images: Tensor, batch_size: int, device: torch.device) -> Seen:
    """Show the classifier images. images: (N, C, S, S) uint8, C 1 or 3."""
    features, guesses = [], []
    hook = classifier.model.head.register_forward_pre_hook(lambda _, given: features.append(given[0].float().cpu()))
    for batch in progress_bar(images.split(batch_size), desc="judging", unit="batch", leave=False):
        shown = torch.stack([pil_to_tensor(classifier.transform(to_pil(image))) for image in batch]).to(device)
        with autocast(device, inference_precision(classifier.precision, device)):
            logits = classifier.model(normalize_images(shown, classifier.channels_last))
        guesses.append(logits.argmax(dim=1).cpu())
    hook.remove()
    return Seen(torch.cat(features), torch.cat(guesses).numpy())


def to_pil(image: Tensor) -> Image.Image:
    """An RGB image. image: (C, S, S) uint8, C 1 or 3."""
    pixels = image.permute(1, 2, 0).numpy()
    return as_rgb(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


# ---- distances -----------------------------------------------------------------------------------------------


class Given(nn.Identity):
    """A network whose input are the features: what torchmetrics wants instead of its own."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Between two sets of features, (N, D) and (M, D) float. Raises ValueError where torchmetrics is not installed."""
    frechet, _ = distance_metrics()
    metric = frechet(feature=Given(real.shape[1]))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """The same by the kernel; of the larger set as many are taken, at random, as the smaller one has."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps all the features
        torch.manual_seed(0)
        _, kernel = distance_metrics()
        metric = kernel(feature=Given(real.shape[1]), subsets=1, subset_size=min(len(real), len(fake)))
        metric.update(real, real=True)
        metric.update(fake, real=False)
        return float(metric.compute()[0])


def inception_distance(real: Tensor, fake: Tensor, batch_size: int, device: torch.device) -> float | None:
    """FID, if the standard network is here; it is never downloaded. real, fake: (N, C, S, S) uint8."""
    if not INCEPTION.is_file():
        logger.info("no fid: the weights of its network are not at %s", INCEPTION)
        return None
    frechet, _ = distance_metrics()
    try:
        metric = frechet(2048, feature_extractor_weights_path=str(INCEPTION))
    except ModuleNotFoundError:
        raise ValueError(MISSING.format("torch-fidelity")) from None
    metric.to(device)
    for images, is_real in ((real, True), (fake, False)):
        for batch in images.split(batch_size):
            metric.update(batch.expand(-1, 3, -1, -1).to(device), real=is_real)
    return float(metric.compute())


def distance_metrics() -> tuple[type, type]:
    """The Frechet and the kernel distance of torchmetrics. Raises ValueError where it is not installed."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ModuleNotFoundError:
        raise ValueError(MISSING.format("torchmetrics")) from None
    return FrechetInceptionDistance, KernelInceptionDistance


if __name__ == "__main__":
    run_command(main)
