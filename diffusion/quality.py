"""Generate samples and compute their scores, for `python -m diffusion.evaluate`, which explains the scores."""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from classification.classifier import Classifier, load_classifier
from data import LabelledImages, LabelledSamples, as_rgb, image_tensor, normalize_images
from diffusion.data import build_transform, read_split
from diffusion.generator import TrainedGenerator, load_generator
from diffusion.pictures import draw_grid
from diffusion.sampling import SamplingConfig
from engine.compute.precision import autocast, inference_precision
from engine.files import write_text
from engine.logbook import logger, progress_bar
from engine.terminal import printable
from records.experiment import format_score

INCEPTION = Path("saved_weights/weights-inception-2015-12-05-6726825d.pth")  # as named by torch-fidelity
MAX_COLUMNS = 10  # of the grid of samples


class Features(NamedTuple):
    """A classifier's features of N images, and its predictions."""

    features: Tensor  # (N, D) float32, input of the last layer
    predictions: np.ndarray  # (N,) int64, index of the most likely output


def score(arguments: argparse.Namespace, device: torch.device) -> None:
    """Generate samples, print their scores, and write score.json and a grid of the samples."""
    generator, classifier = load_generator(arguments.experiment), load_classifier(arguments.classifier)
    outputs = classifier.output_indices(generator.class_ids)
    data = generator.config.data
    if arguments.data:
        data = data.model_copy(update={"root": arguments.data})
    train, val = read_split(data, "train"), read_split(data, "val")
    labels = torch.arange(arguments.samples) % len(generator.class_ids)
    generator.model.to(device)
    classifier.model.to(device)
    sampling = SamplingConfig(sampler=arguments.sampler, steps=arguments.steps, guidance=arguments.guidance)
    parts = generator.generate(sampling, labels.to(device), arguments.seed, arguments.batch_size)
    samples = torch.cat([images[-1] for _, images in parts])  # (N, C, S, S)
    train_images, _ = sample_real_images(train, generator, arguments.samples)
    real_images, real_labels = sample_real_images(val, generator, arguments.samples)
    fake, reference, real = (
        extract_features(classifier, images, arguments.batch_size, device)
        for images in (samples, train_images, real_images)
    )
    agrees = fake.predictions == outputs[labels.numpy()]
    scores = {
        "agreement": float(agrees.mean()),
        "agreement_of_real": float((real.predictions == outputs[real_labels]).mean()),
        "frechet_distance": frechet_distance(real.features, fake.features),
        "frechet_distance_of_real": frechet_distance(real.features, reference.features),
        "kernel_distance": kernel_distance(real.features, fake.features),
        "kernel_distance_of_real": kernel_distance(real.features, reference.features),
        "fid": compute_fid(real_images, samples, arguments.batch_size, device),
    }
    agreement = {
        name: float(agrees[labels == label].mean()) for label, name in enumerate(generator.class_ids[: len(labels)])
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
    draw_grid(folder / "score_samples.png", rows_by_class(samples.numpy(), len(generator.class_ids)))
    for name, share in agreement.items():
        print(f"{share:.4f}  {printable(name)}")
    print("  ".join(f"{name} {format_score(value)}" for name, value in scores.items()))
    print(f"written to {folder / 'score.json'}; samples: {folder / 'score_samples.png'}")


# ---- images --------------------------------------------------------------------------------------------------


def sample_real_images(images: LabelledImages, generator: TrainedGenerator, count: int) -> tuple[Tensor, np.ndarray]:
    """Return real images, spread evenly over a split and preprocessed as for the generator, and their labels.

    Returns (N, C, S, S) uint8 and (N,) int64; N is the smaller of `count` and the size of the split."""
    config = generator.config
    samples = LabelledSamples(images, build_transform(config.data, config.model.input_size, train=False), seed=0)
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return torch.stack([samples[0, int(index)]["image"] for index in chosen]), images.labels[chosen]


def rows_by_class(samples: np.ndarray, classes: int) -> np.ndarray:
    """Arrange samples in a grid with one row per class. samples: (N, C, S, S), of classes 0, 1, ..., 0, 1, ..."""
    classes = min(classes, len(samples))
    columns = min(MAX_COLUMNS, len(samples) // classes)
    return samples[: columns * classes].reshape(columns, classes, *samples.shape[1:]).swapaxes(0, 1)


@torch.inference_mode()
def extract_features(classifier: Classifier, images: Tensor, batch_size: int, device: torch.device) -> Features:
    """Return the classifier's features and predictions for images, (N, C, S, S) uint8; C is 1 or 3."""
    features, predictions = [], []
    hook = classifier.model.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float().cpu()))
    for batch in progress_bar(images.split(batch_size), desc="features", unit="batch", leave=False):
        inputs = [classifier.transform(as_rgb(to_pil_image(image))) for image in batch]
        inputs = torch.stack([image_tensor(image) for image in inputs]).to(device)
        with autocast(device, inference_precision(classifier.precision, device)):
            logits = classifier.model(normalize_images(inputs, classifier.channels_last))
        predictions.append(logits.argmax(dim=1).cpu())
    hook.remove()
    return Features(torch.cat(features), torch.cat(predictions).numpy())


# ---- distances -----------------------------------------------------------------------------------------------


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the Frechet distance between features, (N, D) and (M, D) float (arXiv 1706.08500, eq. 6)."""
    real, fake = real.double(), fake.double()
    covariances = real.T.cov(), fake.T.cov()
    # The trace of a matrix square root is the sum of the square roots of the eigenvalues.
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    mean = (real.mean(0) - fake.mean(0)).square().sum()
    return float(mean + covariances[0].trace() + covariances[1].trace() - 2 * root)


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy with a cubic kernel, KID (arXiv 1801.01401, eq. 3).

    real: (N, D), fake: (M, D) float. The larger set is subsampled at random to the size of the smaller one."""
    count, generator = min(len(real), len(fake)), torch.Generator().manual_seed(0)
    real, fake = (x.double()[torch.randperm(len(x), generator=generator)[:count]] for x in (real, fake))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum((k.sum() - k.trace()) / (count * (count - 1)) for k in (kernel(real, real), kernel(fake, fake)))
    return float(within - 2 * kernel(real, fake).mean())


@torch.inference_mode()
def compute_fid(real: Tensor, fake: Tensor, batch_size: int, device: torch.device) -> float | None:
    """Return the FID, or None if the file of Inception weights is missing; the file is never downloaded.

    real, fake: (N, C, S, S) uint8. Raises ValueError if torch-fidelity is not installed."""
    if not INCEPTION.is_file():
        logger.info("fid not computed: no file %s with the weights of the Inception network", INCEPTION)
        return None
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError:
        raise ValueError("torch-fidelity is not installed: pip install -e '.[diffusion]'") from None
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(INCEPTION)
    )
    network = network.to(device).eval()

    def features(images: Tensor) -> Tensor:
        return torch.cat(
            [network(batch.expand(-1, 3, -1, -1).to(device))[0].cpu() for batch in images.split(batch_size)]
        )

    return frechet_distance(features(real), features(fake))
