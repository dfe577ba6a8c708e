"""Write the formats of `python -m detection.export`, and compare an export with the PyTorch model."""

import argparse
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import DatasetError
from detection.coco.annotations import read_split
from detection.detector import Detector, load, model_input, rgb_pixels
from detection.network.boxes import decode_boxes
from detection.network.heads import class_scores
from detection.network.postprocess import PostprocessConfig, RawDetections, postprocess
from detection.network.ssd import SSD
from engine.command import RunError
from engine.files import write_atomically
from engine.logbook import logger

if TYPE_CHECKING:
    import onnx

INPUTS = {"images": "(B, 3, S, S) float32, RGB pixel values from 0 to 255; the network normalises them itself"}
ALL_OUTPUTS = {
    "all_boxes_xyxy": "(B, A, 4) float32, left, top, right, bottom of every box, as fractions of the image's sides",
    "all_scores": "(B, A, C) float32, probability of each class for every box, in the order of `classes`",
}
DETECTION_OUTPUTS = {
    "boxes_xyxy": "(B, N, 4) float32, left, top, right, bottom, as fractions of the image's sides; best box first",
    "scores": "(B, N) float32, probabilities",
    "labels": "(B, N) int64, k means the k-th of `classes`",
    "num_detections": "(B,) int64, number of detections among the N entries; the rest are 0",
}
FACTS_FILE = "detector.json"  # extra file in the archive of torch.export
OPSET = 18  # native opset of PyTorch's ONNX exporter; onnxruntime 1.18 and newer can read it
TOLERANCE = 1e-4  # largest accepted difference between scores, and between box coordinates (fractions)
MAX_DIFFERING = 0.01  # accepted share of different detections: rounding can change which of two boxes NMS keeps
VERIFIED_IMAGES = 8  # number of validation images to compare on

Network = Callable[[Tensor], Sequence[Tensor]]


def run_export(arguments: argparse.Namespace) -> None:
    """Export a detector on the CPU, compare the export with the detector, and write the file."""
    detector = load(arguments.detector, "cpu")
    images = read_images(detector, arguments.images)
    model = detector.model.to(memory_format=torch.contiguous_format)  # training may have used channels_last
    settings = detector.config.eval if arguments.postprocess else None
    logger.info("exporting %s, step %d, in float32; this may take a minute", detector.path, detector.step)
    content = export(model, arguments.format, export_facts(detector, settings), settings)
    print(verify(model, FORMATS[arguments.format].load(content), images, settings))
    write_atomically(arguments.output, lambda file: file.write(content))
    side = model.input_size
    print(f"written to {arguments.output}: {len(content) / 1e6:.1f} MB; takes any number of {side} x {side} images")


def read_images(detector: Detector, files: Sequence[str]) -> Tensor:
    """Read and resize `files`, or some validation images if `files` is empty. Returns (n, 3, S, S) float32, 0 to 255.

    Raises DatasetError if an image cannot be read, or if validation images are needed but missing."""
    if not files:
        try:
            val = read_split(detector.config.data, "val")
        except DatasetError as error:
            raise DatasetError(f"no images to compare on; name images on the command line: {error}") from None
        indices = np.linspace(0, len(val.images) - 1, min(VERIFIED_IMAGES, len(val.images))).round().astype(int)
        files = [val.file(index).path for index in indices]
    side = detector.model.input_size
    return torch.stack([model_input(rgb_pixels(file), side) for file in files]).float()


def export_facts(detector: Detector, settings: PostprocessConfig | None) -> dict[str, Any]:
    """Return the metadata of the exported file. settings: post-processing in the file, or None."""
    return {
        "classes": detector.class_names,
        "category_ids": detector.category_ids,
        "input_size": detector.model.input_size,
        "preprocessing": detector.preprocessing,
        "inputs": INPUTS,
        "outputs": DETECTION_OUTPUTS if settings else ALL_OUTPUTS,
        "score_function": detector.model.score_function,
        "postprocessing": settings.model_dump() if settings else None,
        "step": detector.step,
    }


# ---- writing and reading ----------------------------------------------------------------------------------------


class DecodedSSD(nn.Module):
    """An SSD that returns decoded boxes and class probabilities, so that users do not need the default boxes."""

    def __init__(self, model: SSD) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return ALL_OUTPUTS. images: as in INPUTS."""
        box_deltas, class_logits = self.model(images)
        boxes_xyxy = decode_boxes(box_deltas, self.model.anchors_cxcywh).clamp(0, 1)
        return boxes_xyxy, class_scores(class_logits, self.model.score_function)  # (B, A, 4), (B, A, C)


@torch.no_grad()
def export(model: SSD, format_name: str, facts: dict[str, Any], settings: PostprocessConfig | None = None) -> bytes:
    """Return the content of the exported file.

    model: in evaluation mode, on the CPU. format_name: a key of FORMATS. facts: plain data to store in the file.
    settings: post-processing to include (ONNX only)."""
    images = torch.zeros(2, 3, model.input_size, model.input_size)  # a batch size of 1 would be exported as a constant
    program = FORMATS[format_name].trace(DecodedSSD(model).eval(), images)
    if settings:
        add_postprocessing(program, len(model.anchors_cxcywh), model.num_classes, settings)
    return FORMATS[format_name].save(program, facts)


def trace_onnx(model: nn.Module, images: Tensor, outputs: Sequence[str] = tuple(ALL_OUTPUTS)) -> "onnx.ModelProto":
    """Return the ONNX graph of a network with one input and outputs with these names."""
    program = torch.onnx.export(
        model, (images,), dynamic_shapes=({0: "batch"},), input_names=["images"], output_names=list(outputs),
        opset_version=OPSET, verbose=False,
    )  # fmt: skip
    proto = program.model_proto
    for item in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        item.ClearField("metadata_props")  # contains paths of the source code
    return proto


def save_onnx(proto: "onnx.ModelProto", facts: dict[str, Any]) -> bytes:
    import onnx

    onnx.helper.set_model_props(proto, {name: json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()})
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def load_onnx(content: bytes) -> Network:
    """Load an ONNX file into onnxruntime, with as many threads as PyTorch uses. They do not spin between runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else they take time from other programs
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]


def trace_torch_export(model: DecodedSSD, images: Tensor) -> torch.export.ExportedProgram:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of the source code
    return program


def save_torch_export(program: torch.export.ExportedProgram, facts: dict[str, Any]) -> bytes:
    file = BytesIO()
    torch.export.save(program, file, extra_files={FACTS_FILE: json.dumps(facts, ensure_ascii=False)})
    return file.getvalue()


class Format(NamedTuple):
    """Functions of one format: trace a network, serialise the trace, and load it again."""

    trace: Callable[[DecodedSSD, Tensor], Any]
    save: Callable[[Any, dict[str, Any]], bytes]
    load: Callable[[bytes], Network]


FORMATS = {
    "onnx": Format(trace_onnx, save_onnx, load_onnx),
    "torch-export": Format(
        trace_torch_export, save_torch_export, lambda content: torch.export.load(BytesIO(content)).module()
    ),
}


# ---- post-processing in ONNX ------------------------------------------------------------------------------------

# `table` contains the score of every (box, class) pair, or -1 if the score threshold or NMS discards the pair. The
# detections are the pairs with the highest scores. TopK orders pairs with equal scores by box, then by class.
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
    """Append `detection.network.postprocess` to an ONNX graph. The outputs of the graph become DETECTION_OUTPUTS."""
    import onnx

    places = min(settings.max_detections, num_anchors * num_classes)
    constants = {
        "places": np.array([places]),
        "nms_iou": np.float32(settings.nms_iou),
        # ONNX's NonMaxSuppression keeps scores > threshold, but `postprocess` keeps scores >= threshold.
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
    addition = onnx.parser.parse_graph(POSTPROCESSING.format(places=places))
    graph = proto.graph
    graph.node.extend(addition.node)
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    del graph.output[:]
    graph.output.extend(addition.output)


# ---- comparing with the PyTorch model ---------------------------------------------------------------------------


@torch.no_grad()
def verify(model: SSD, exported: Network, images: Tensor, settings: PostprocessConfig | None = None) -> str:
    """Compare an exported network with the model on `images` (n, 3, S, S); return a summary.

    Both networks run on the first image alone, then on a batch of all images plus the first image again.
    settings: post-processing in `exported`, or None. Raises RunError if a box or score differs by more than TOLERANCE.
    With post-processing, a share of up to MAX_DIFFERING of the detections may differ by more than TOLERANCE."""
    compare = _compare_detections if settings else _compare_boxes
    batches = (images[:1], torch.cat([images, images[:1]]))
    differences = torch.cat([compare(model, exported, batch, settings) for batch in batches])  # (n, 2)
    if not len(differences):
        logger.warning("no objects were detected, so the comparison shows little; use images with objects")
    is_near = (differences <= TOLERANCE).all(dim=1)  # False if NaN
    box, score = F.pad(differences[is_near], (0, 0, 0, 1)).amax(dim=0).tolist()
    far = int((~is_near).sum())
    summary = (
        f"compared {len(differences):,} {'detections' if settings else 'boxes'} of {len(images)} image(s) with "
        f"PyTorch: boxes differ by up to {box:.2g} of the image's side, scores by up to {score:.2g}; "
        f"{far:,} differ by more than {TOLERANCE:g}"
    )
    if far > (MAX_DIFFERING * len(differences) if settings else 0):
        raise RunError(f"{summary}. Nothing is written; try a different --format")
    return summary


def _compare_boxes(model: SSD, exported: Network, images: Tensor, _: None) -> Tensor:
    """Return the largest coordinate difference and the largest score difference of each box: (B * A, 2)."""
    pairs = zip(exported(images), DecodedSSD(model)(images), strict=True)
    return torch.stack([(actual - expected).abs().amax(dim=-1).flatten() for actual, expected in pairs], dim=1)


def _compare_detections(model: SSD, exported: Network, images: Tensor, settings: PostprocessConfig) -> Tensor:
    """Return the `_differences` of the two networks' detections, in both directions: (n, 2)."""
    expected = postprocess(
        *model(images), model.anchors_cxcywh, **settings.model_dump(), score_function=model.score_function
    )
    *columns, counts = exported(images)
    differences = []
    for image, count in enumerate(counts.tolist()):
        actual = RawDetections(*(column[image, :count] for column in columns))
        differences += [_differences(expected[image], actual), _differences(actual, expected[image])]
    return torch.cat(differences)


def _differences(detections: RawDetections, references: RawDetections) -> Tensor:
    """Return (n, 2): box and score difference of each detection to the nearest reference of its class, inf if none."""
    box = (detections.boxes_xyxy[:, None] - references.boxes_xyxy).abs().amax(dim=-1)  # (n, m)
    score = (detections.scores[:, None] - references.scores).abs()
    is_different_class = detections.labels[:, None] != references.labels
    differences = torch.stack([box, score], dim=-1).masked_fill(is_different_class[..., None], torch.inf)
    differences = F.pad(differences, (0, 0, 0, 1), value=torch.inf)  # (n, m + 1, 2), because m may be 0
    return differences[torch.arange(len(differences)), differences.amax(dim=-1).argmin(dim=1)]
