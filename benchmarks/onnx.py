"""From images to detections on the CPU: the exported ONNX file in onnxruntime, beside the PyTorch model.

    OMP_NUM_THREADS=1 python -m benchmarks.onnx

Both in float32, the file as `detection.export --postprocess` writes it, the model followed by
detection/network/postprocess.py. The weights are random and the images drawn; the class heads are made as loud as
trained ones, and the score threshold is put where as many pairs of box and class reach it. Before they are timed, both
must detect the same, as the command itself sees to it.

Nothing is asked: the file is for programs without PyTorch. Takes two minutes.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.comparison import Row, turn_by_turn, write_page
from data import normalize_images
from detection.detector import model_input, rgb_pixels
from detection.formats import FORMATS, export, verify
from detection.network.postprocess import PostprocessConfig, postprocess
from detection.network.ssd import SSD, ModelConfig, build_ssd
from detection.shapes import generate
from engine.command import run_command
from engine.logbook import logger

BACKBONE_NAMES = ("ResNet50Backbone_B", "SwinTBackbone_B")
NUM_CLASSES, PAIRS_PER_IMAGE, LOGIT_STD = 80, 100, 2
BATCH_SIZES, ROUNDS = (1, 8), 5


def drawn_images(input_size: int) -> Tensor:
    """As many as the largest batch has, (B, 3, S, S) float32, normalised."""
    with tempfile.TemporaryDirectory() as name:
        generate(Path(name), num_train=1, num_val=max(BATCH_SIZES), image_size=input_size)
        files = sorted(Path(name).glob("images/val/*"))
        return normalize_images(torch.stack([model_input(rgb_pixels(file), input_size) for file in files]))


@torch.no_grad()
def make_loud(model: SSD, images: Tensor) -> PostprocessConfig:
    """Scale the class heads to logits of LOGIT_STD; returns settings whose score threshold PAIRS_PER_IMAGE reach."""
    quiet = model(images)[1][..., 1:].std()
    for convolution in model.class_head:
        convolution.weight *= LOGIT_STD / quiet
    scores = model(images)[1].softmax(dim=-1)[..., 1:].flatten()
    threshold = scores.topk(len(images) * PAIRS_PER_IMAGE).values[-1]
    return PostprocessConfig(score_threshold=threshold.item())


def main(_: torch.device) -> None:
    """Compare, and write the page. Raises RunError if the detections differ."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()  # --help measures nothing
    device = torch.device("cpu")  # whatever else there is
    torch.set_num_threads(1)
    rows, verified = [], []
    for backbone in BACKBONE_NAMES:
        torch.manual_seed(0)
        model = build_ssd(ModelConfig(backbone=backbone), NUM_CLASSES).eval().requires_grad_(False)
        images = drawn_images(model.input_size)
        settings = make_loud(model, images)
        logger.info("exporting %s", backbone)
        exported = FORMATS["onnx"].load(export(model, "onnx", {}, settings))
        verified.append(f"{backbone}: {verify(model, exported, images, settings)}.")
        for batch_size in BATCH_SIZES:
            batch = images[:batch_size]

            @torch.inference_mode()
            def by_pytorch(model=model, batch=batch, settings=settings) -> object:
                return postprocess(*model(batch), model.anchors_cxcywh, **settings.model_dump())

            def by_onnx(exported=exported, batch=batch) -> object:
                return exported(batch)

            for contender in (by_pytorch, by_onnx):
                contender()
            theirs, ours = (1000 * seconds / batch_size for seconds in turn_by_turn([by_pytorch, by_onnx], ROUNDS))
            rows.append(Row(f"{backbone}, an image in a batch of {batch_size}", "PyTorch", theirs, ours, "ms"))
    write_page(
        __file__,
        f"""# ONNX on a CPU

From normalised images to detections, {NUM_CLASSES} classes, {PAIRS_PER_IMAGE} pairs of box and class over the \
threshold in each image, float32; process time, the least of {ROUNDS} rounds; onnxruntime beside PyTorch.

{{rows}}

{" ".join(verified)}
""",
        rows,
        device,
    )


if __name__ == "__main__":
    run_command(main)
