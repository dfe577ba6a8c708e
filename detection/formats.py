"""What `python -m detection.export` does: write a detector into a file of another format, and verify that file."""

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from data import DatasetError, normalize_images
from detection.coco.annotations import read_split
from detection.detector import Detector, load, model_input, rgb_pixels
from detection.network.boxes import decode_boxes
from detection.network.postprocess import Detections, PostprocessConfig, postprocess
from detection.network.ssd import SSD
from engine.command import RunError
from engine.files import write_whole, writing
from engine.logbook import logger

if TYPE_CHECKING:
    import onnx

ALL_OUTPUTS = {
    "all_boxes_xyxy": "(B, A, 4) float32, fractions of the image's sides: left, top, right, bottom of every box",
    "all_scores": "(B, A, C) float32, its probability of each class, in the order of `classes`",
}
DETECTION_OUTPUTS = {
    "boxes_xyxy": "(B, N, 4) float32, fractions of the image's sides: left, top, right, bottom, best box first",
    "scores": "(B, N) float32, probabilities",
    "labels": "(B, N) int64, k for the k-th of `classes`",
    "num_detections": "(B,) int64, how many of the N places count; the others are 0",
}
FACTS_FILE = "detector.json"  # in the formats of PyTorch
OPSET = 18  # of ONNX: the one that PyTorch's exporter is written in; for onnxruntime from 1.18
TOLERANCE = 1e-4  # largest difference of a box, as a fraction of the image's sides, and of a score
IOU_TOLERANCE = 0.01  # what that makes of the overlap of small boxes
VERIFIED_IMAGES = 8  # of the validation images

Network = Callable[[Tensor], Sequence[Tensor]]


# ---- the command ----------------------------------------------------------------------------------------------


def run_export(arguments: argparse.Namespace) -> None:
    """Export as the command line says, on the CPU."""
    with writing(arguments.output), TemporaryFile(dir=arguments.output.parent):
        pass  # or that it cannot be written would show at the end
    detector = load(arguments.detector, "cpu")
    images = read_images(detector, arguments.images)
    detector.model.to(memory_format=torch.contiguous_format)  # whatever was faster in training
    settings = detector.config.eval if arguments.postprocess else None
    logger.info("exporting %s, step %d, in float32; this may take a minute", detector.path, detector.step)
    content = export(detector.model, arguments.format, facts_of(detector, settings), settings)
    logger.info("comparing what it finds with what the PyTorch model finds")
    print(verify(detector.model, FORMATS[arguments.format].load(content), images, settings))
    write_whole(arguments.output, lambda file: file.write(content))
    side = detector.model.input_size
    print(f"written to {arguments.output}: {len(content) / 1e6:.1f} MB, for any number of images of {side} x {side}")


def read_images(detector: Detector, files: Sequence[str]) -> Tensor:
    """The files, or else some of the detector's validation images, as its model takes them: (n, 3, S, S) float32.

    Raises DatasetError if one cannot be read, or if none is named and the validation images are not there."""
    if not files:
        try:
            val = read_split(detector.config.data, "val")
        except DatasetError as error:
            what = str(error).partition(";")[0]  # the cures are for training
            raise DatasetError(
                f"no images to verify on, name some on the command line; of those it knows: {what}"
            ) from None
        chosen = np.linspace(0, len(val.images) - 1, min(VERIFIED_IMAGES, len(val.images))).round().astype(int)
        files = [val.file(index).path for index in chosen]
    side = detector.model.input_size
    return normalize_images(torch.stack([model_input(rgb_pixels(file), side) for file in files]))


def facts_of(detector: Detector, settings: PostprocessConfig | None) -> dict[str, Any]:
    """What the file says of itself. settings: of the post-processing in it; None if there is none."""
    return {
        "classes": detector.class_names,
        "category_ids": detector.category_ids,
        "input_size": detector.model.input_size,
        "preprocessing": detector.preprocessing,
        "outputs": DETECTION_OUTPUTS if settings else ALL_OUTPUTS,
        "postprocessing": settings.model_dump() if settings else None,
        "step": detector.step,
    }


# ---- writing --------------------------------------------------------------------------------------------------


class DecodedSSD(nn.Module):
    """A detector whose outputs need no default boxes to be understood."""

    def __init__(self, model: SSD) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, 3, S, S) float32, normalised. Returns what ALL_OUTPUTS says."""
        box_deltas, class_logits = self.model(images)
        boxes_xyxy = decode_boxes(box_deltas, self.model.anchors_cxcywh).clamp(0, 1)
        return boxes_xyxy, class_logits.softmax(dim=-1)[..., 1:]  # (B, A, 4), (B, A, C)


@torch.no_grad()
def export(model: SSD, format_name: str, facts: dict[str, Any], settings: PostprocessConfig | None = None) -> bytes:
    """The content of the file.

    model: in evaluation mode, on the CPU. format_name: a row of FORMATS. facts: plain data, stored in the file.
    settings: for post-processing inside, in ONNX only."""
    images = torch.zeros(2, 3, model.input_size, model.input_size)  # one would be taken for a batch of always one
    program = FORMATS[format_name].trace(DecodedSSD(model).eval(), images)
    if settings:
        add_postprocessing(program, len(model.anchors_cxcywh), model.num_classes, settings)
    return FORMATS[format_name].save(program, facts)


def trace_onnx(model: DecodedSSD, images: Tensor) -> "onnx.ModelProto":
    """By PyTorch's exporter, which is built on torch.export."""
    program = torch.onnx.export(
        model, (images,), dynamic_shapes=({0: "batch"},), input_names=["images"], output_names=list(ALL_OUTPUTS),
        opset_version=OPSET, verbose=False,
    )  # fmt: skip
    proto = program.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")  # what it was in the source code
    return proto


def save_onnx(proto: "onnx.ModelProto", facts: dict[str, Any]) -> bytes:
    import onnx

    onnx.helper.set_model_props(proto, {name: json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()})
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def trace_torch_export(model: DecodedSSD, images: Tensor) -> torch.export.ExportedProgram:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # whose folders the source code lies in
    return program


def save_torch_export(program: torch.export.ExportedProgram, facts: dict[str, Any]) -> bytes:
    file = BytesIO()
    torch.export.save(program, file, extra_files={FACTS_FILE: json.dumps(facts, ensure_ascii=False)})
    return file.getvalue()


def trace_torchscript(model: DecodedSSD, images: Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the format is old, and that another batch might need another trace
        return torch.jit.trace(model, images, check_trace=False)


def save_torchscript(program: torch.jit.ScriptModule, facts: dict[str, Any]) -> bytes:
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(program, file, _extra_files={FACTS_FILE: json.dumps(facts, ensure_ascii=False)})
    return file.getvalue()


# From all boxes to detections, in ONNX's own notation. Suppressed pairs of box and class get a score of -1 in a table
# of all pairs; the best of that are the detections, equal scores in the order of box, then class, as TopK has them.
POSTPROCESSING = """
postprocessing (float[batch, boxes, 4] all_boxes_xyxy, float[batch, boxes, classes] all_scores) => (
    float[batch, {places}, 4] boxes_xyxy, float[batch, {places}] scores,
    int64[batch, {places}] labels, int64[batch] num_detections
) {{
    scores_by_class = Transpose <perm = [0, 2, 1]> (all_scores)
    kept_by_class = NonMaxSuppression (all_boxes_xyxy, scores_by_class, places, nms_iou, largest_dropped_score)
    kept = Gather <axis = 1> (kept_by_class, image_box_class)
    kept_scores = GatherND (all_scores, kept)
    table_shape = Shape (all_scores)
    empty_table = Expand (dropped, table_shape)
    table = ScatterND (empty_table, kept, kept_scores)
    pairs = Reshape (table, one_row_per_image)
    best_scores, best_pairs = TopK (pairs, places)
    is_detection = GreaterOrEqual (best_scores, zero)
    scores = Max (best_scores, zero)
    column = Mod (best_pairs, num_classes)
    label = Add (column, one)
    labels = Where (is_detection, label, no_label)
    box = Div (best_pairs, num_classes)
    box_index = Unsqueeze (box, last_axis)
    best_boxes = GatherND <batch_dims = 1> (all_boxes_xyxy, box_index)
    has_box = Unsqueeze (is_detection, last_axis)
    boxes_xyxy = Where (has_box, best_boxes, zero)
    counted = Cast <to = 7> (is_detection)
    num_detections = ReduceSum <keepdims = 0> (counted, last_axis)
}}
"""


def add_postprocessing(
    proto: "onnx.ModelProto", num_anchors: int, num_classes: int, settings: PostprocessConfig
) -> None:
    """Let a graph that gives ALL_OUTPUTS give DETECTION_OUTPUTS, as `detection.network.postprocess` has them."""
    import onnx

    places = min(settings.max_detections, num_anchors * num_classes)
    constants = {
        "places": np.array([places]),
        "nms_iou": np.float32(settings.nms_iou),
        # NonMaxSuppression takes scores above its threshold, we from ours on.
        "largest_dropped_score": np.nextafter(np.float32(settings.score_threshold), np.float32(-1)),
        "image_box_class": np.array([0, 2, 1]),
        "dropped": np.float32(-1),
        "one_row_per_image": np.array([0, num_anchors * num_classes]),
        "num_classes": np.int64(num_classes),
        "zero": np.float32(0),
        "one": np.int64(1),
        "no_label": np.int64(0),
        "last_axis": np.array([-1]),
    }
    part = onnx.parser.parse_graph(POSTPROCESSING.format(places=places))
    graph = proto.graph
    graph.node.extend(part.node)
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    del graph.output[:]
    graph.output.extend(part.output)


# ---- reading --------------------------------------------------------------------------------------------------


def load_onnx(content: bytes) -> Network:
    """By onnxruntime, on as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]


def load_torch_export(content: bytes) -> Network:
    return torch.export.load(BytesIO(content)).module()


def load_torchscript(content: bytes) -> Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(BytesIO(content))


class Format(NamedTuple):
    """A kind of file: how a network becomes a program, a program the content of a file, and that a network again."""

    trace: Callable[[DecodedSSD, Tensor], Any]
    save: Callable[[Any, dict[str, Any]], bytes]
    load: Callable[[bytes], Network]


FORMATS = {
    "onnx": Format(trace_onnx, save_onnx, load_onnx),
    "torch-export": Format(trace_torch_export, save_torch_export, load_torch_export),
    "torchscript": Format(trace_torchscript, save_torchscript, load_torchscript),
}


# ---- verifying ------------------------------------------------------------------------------------------------


@torch.no_grad()
def verify(model: SSD, exported: Network, images: Tensor, settings: PostprocessConfig | None = None) -> str:
    """Run both on `images` (n, 3, S, S): on the first alone, then on all and the first once more. Says what differs.

    settings: of the post-processing in `exported`; None if there is none.
    Raises RunError if anything differs by more than TOLERANCE, or is missing for no reason of rounding."""
    batches = (images[:1], torch.cat([images, images[:1]]))
    if settings is None:
        what, compared = "boxes", [_compare_boxes(model, exported, batch) for batch in batches]
    else:
        what, compared = "detections", [_compare_detections(model, exported, batch, settings) for batch in batches]
    differences, may_be_missing = (torch.cat(column) for column in zip(*compared, strict=True))
    if not len(differences):
        logger.warning("nothing is detected on these images, which verifies little; name others")
    is_near = (differences <= TOLERANCE).all(dim=1)  # not if NaN
    box, score = F.pad(differences[is_near], (0, 0, 0, 1)).amax(dim=0).tolist()
    ties, far = int((~is_near & may_be_missing).sum()), int((~is_near & ~may_be_missing).sum())
    of = f"{len(images)} images, one alone and all in a batch" if len(images) > 1 else "an image, alone and in a batch"
    line = (
        f"{len(differences):,} {what} compared with PyTorch's, of {of}: largest difference "
        f"{box:.2g} of the image's side in boxes, {score:.2g} in scores; {far:,} differ by more than {TOLERANCE:g}"
        + (f"; {ties:,} more where rounding decides" if ties else "")
    )
    if far:
        raise RunError(f"{line}. Nothing is written; another --format may do")
    return line


def _compare_boxes(model: SSD, exported: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """By how much each box differs from PyTorch's, and the most of its scores, (B * A, 2); none may be missing."""
    pairs = zip(exported(images), DecodedSSD(model)(images), strict=True)
    differences = torch.stack([(found - expected).abs().amax(dim=-1).flatten() for found, expected in pairs], dim=1)
    return differences, torch.zeros(len(differences), dtype=torch.bool)


def _compare_detections(
    model: SSD, exported: Network, images: Tensor, settings: PostprocessConfig
) -> tuple[Tensor, Tensor]:
    """PyTorch's detections among the file's, and the file's among PyTorch's, see `account_for`."""
    expected = postprocess(*model(images), model.anchors_cxcywh, **settings.model_dump())
    *columns, counts = exported(images)
    found = [Detections(*(column[image, :count] for column in columns)) for image, count in enumerate(counts.tolist())]
    pairs = list(zip(expected, found, strict=True))
    accounts = [account_for(*pair, settings) for pair in (*pairs, *(pair[::-1] for pair in pairs))]
    differences, may_be_missing = (torch.cat(column) for column in zip(*accounts, strict=True))
    return differences, may_be_missing


def account_for(these: Detections, those: Detections, settings: PostprocessConfig) -> tuple[Tensor, Tensor]:
    """Look for each of these n detections among those, which another program has on the same image.

    Returns by how much box and score differ from the nearest of its class, (n, 2), inf if there is none; and whether
    it may be missing, (n,) bool, for it is rounding that decides: its score is hardly the threshold's, or the last
    place's where all are taken, or one that is as good suppresses it."""
    is_other_class = these.labels[:, None] != those.labels  # (n, m)
    box = (these.boxes_xyxy[:, None] - those.boxes_xyxy).abs().amax(dim=-1)
    score = (these.scores[:, None] - those.scores).abs()
    both = torch.stack([box, score], dim=-1).masked_fill(is_other_class[..., None], torch.inf)
    both = F.pad(both, (0, 0, 0, 1), value=torch.inf)  # (n, m + 1, 2), for m may be 0
    nearest = both.amax(dim=-1).argmin(dim=1)

    is_full = len(those.scores) == settings.max_detections
    least_score = those.scores[-1].item() if is_full else settings.score_threshold
    overlap = box_iou(these.boxes_xyxy, those.boxes_xyxy).masked_fill(is_other_class, 0)
    is_as_good = those.scores >= these.scores[:, None] - TOLERANCE
    is_suppressed = (is_as_good & (overlap >= settings.nms_iou - IOU_TOLERANCE)).any(dim=1)
    return both[torch.arange(len(both)), nearest], is_suppressed | (these.scores <= least_score + TOLERANCE)
