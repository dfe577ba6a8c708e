"""Ask a classifier what is on images.

python train_clf_imagenet.py predict torchvision_swin_t photo.jpg
python train_clf_imagenet.py predict experiments/experiment_3 photos/*.jpg --top 3
"""

import argparse

import torch

from classification.classifier import load_classifier
from classification.task import guess
from data import DatasetError, image_tensor, normalize_images, read_image
from engine.compute.precision import autocast, inference_precision
from engine.logbook import logger
from engine.terminal import printable


def predict(arguments: argparse.Namespace, device: torch.device) -> None:
    """Print the likeliest classes of each image. What cannot be read is told, and the others go on.

    Raises DatasetError at the end if there was such a file."""
    classifier = load_classifier(arguments.classifier)
    names, model = classifier.class_names, classifier.model.to(device)
    unread = []
    for path in arguments.images:
        try:
            image = classifier.transform(read_image(path))
        except DatasetError as error:
            logger.warning(str(error))
            unread.append(path)
            continue
        images = normalize_images(image_tensor(image)[None].to(device), classifier.channels_last)
        with autocast(device, inference_precision(classifier.precision, device)):
            classes, probabilities = guess(model, images)
        print(path)
        for output, probability in list(zip(classes[0].tolist(), probabilities[0].tolist(), strict=True))[
            : arguments.top
        ]:
            print(f"  {probability:6.1%}  {printable(names[output])}")
    if unread:
        raise DatasetError(
            f"{len(unread)} of {len(arguments.images)} images left out, as told above: {', '.join(map(str, unread))}"
        )
