"""detection/export.py: what other programs get is the detector, and says what they must know of it."""

import errno
import json
import re
import shutil
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from detection import export as command_line
from detection import formats, load
from detection.formats import FORMATS, add_postprocessing, verify
from detection.network.anchors import ANCHOR_SCALES, default_boxes
from detection.network.boxes import decode_boxes
from detection.network.postprocess import Detections, PostprocessConfig, postprocess
from detection.network.ssd import SSD, ModelConfig, build_ssd
from detection.task import DetectionConfig
from engine.checkpoint import save_checkpoint
from engine.command import RunError
from engine.config import dump_config

SIDE, NUM_CLASSES = 96, 3
FACTS = {"classes": ["cat", "Kätzchen 猫", "dog"], "category_ids": [3, 7, 90]}
SETTINGS = PostprocessConfig(score_threshold=0.05, max_detections=20)
PAIRS = [
    ("onnx", "ResNet18SlimBackbone_A", "none"),
    ("onnx", "SwinSlimBackbone_B", "pan"),
    ("torch-export", "SwinSlimBackbone_B", "fpn"),
    ("torchscript", "ResNet18SlimBackbone_A", "fpn"),
    ("torchscript", "SwinSlimBackbone_B", "dense_fpn"),
]
ONNX, TORCH_EXPORT, TORCHSCRIPT = PAIRS[0], PAIRS[2], PAIRS[3]
SLOW = PAIRS[1]  # ten times as long as the others


def detector(backbone: str, neck: str) -> SSD:
    """With random weights, but sure of what it sees."""
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, neck=neck, neck_channels=16, input_size=SIDE)
    model = build_ssd(config, NUM_CLASSES).eval().requires_grad_(False)
    for convolution in (*model.box_head, *model.class_head):
        convolution.weight.normal_(std=0.02)
        convolution.bias.zero_()
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported():
    """Makes the content of a file of a detector, once."""
    return cache(lambda *pair: formats.export(detector(*pair[1:]), pair[0], FACTS))


@pytest.fixture(scope="module")
def exported_detections(exported):
    """The content of the same file with post-processing, without tracing the model again."""
    proto, model = onnx.load_from_string(exported(*ONNX)), detector(*ONNX[1:])
    add_postprocessing(proto, len(model.anchors_cxcywh), NUM_CLASSES, SETTINGS)
    return formats.save_onnx(proto, FACTS)


@pytest.mark.parametrize(
    "pair", [pytest.param(pair, marks=pytest.mark.slow) if pair == SLOW else pair for pair in PAIRS], ids="-".join
)
def test_the_file_says_of_one_image_and_of_several_what_the_model_says(pair, exported, images):
    line = verify(detector(*pair[1:]), FORMATS[pair[0]].load(exported(*pair)), images)
    assert "of 3 images, one alone and all in a batch: " in line
    assert line.endswith("; 0 differ by more than 0.0001")


def test_with_postprocessing_the_file_detects_what_the_model_and_postprocess_do(model, detections, images):
    line = verify(model, detections, images, SETTINGS)
    assert line.startswith("200 detections compared with PyTorch's, of 3")  # 20 in each of 5 images, from either side
    assert "; 0 differ by more than 0.0001" in line


# ---- post-processing in ONNX ------------------------------------------------------------------------------------

ANCHORS = default_boxes([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], ANCHOR_SCALES["ssd"])


def detections_by_onnx(box_deltas, class_logits, settings):
    """What the post-processing alone makes of all boxes and scores."""
    boxes_xyxy = decode_boxes(box_deltas, ANCHORS).clamp(0, 1)
    scores = class_logits.softmax(dim=-1)[..., 1:].contiguous()
    kinds = {"all_boxes_xyxy": ["batch", len(ANCHORS), 4], "all_scores": ["batch", *scores.shape[1:]]}
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, kind) for name, kind in kinds.items()]
    opset = [onnx.helper.make_opsetid("", formats.OPSET)]
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "part", inputs, []), opset_imports=opset, ir_version=10)
    add_postprocessing(proto, len(ANCHORS), scores.shape[-1], settings)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"all_boxes_xyxy": boxes_xyxy.numpy(), "all_scores": scores.numpy()})


@pytest.mark.parametrize("quantum", [None, 0.5, 2.0], ids=["distinct scores", "some ties", "many ties"])
@pytest.mark.parametrize(("score_threshold", "max_detections"), [(0.0, 9000), (0.05, 200), (0.3, 10), (0.999999, 5)])
def test_detections_by_onnx_equal_postprocess(score_threshold, max_detections, quantum):
    generator = torch.Generator().manual_seed(max_detections)
    box_deltas = torch.randn(3, len(ANCHORS), 4, generator=generator) * 2
    class_logits = torch.randn(3, len(ANCHORS), NUM_CLASSES + 1, generator=generator) * 4
    class_logits[0, :50, 2] += 40  # scores of exactly 1
    class_logits[1, :, 0] += 10  # the image in the middle has fewer detections
    if quantum is not None:
        class_logits = (class_logits / quantum).round() * quantum
    settings = PostprocessConfig(score_threshold=score_threshold, max_detections=max_detections)
    expected = postprocess(box_deltas, class_logits, ANCHORS, **settings.model_dump())
    boxes_xyxy, scores, labels, counts = detections_by_onnx(box_deltas, class_logits, settings)
    assert counts.tolist() == [len(image.scores) for image in expected]
    for image, count in enumerate(counts):
        assert labels[image, :count].tolist() == expected[image].labels.tolist()
        torch.testing.assert_close(torch.from_numpy(scores[image, :count]), expected[image].scores, atol=1e-6, rtol=0)
        found_boxes = torch.from_numpy(boxes_xyxy[image, :count])
        torch.testing.assert_close(found_boxes, expected[image].boxes_xyxy, atol=1e-6, rtol=0)


def test_a_score_equal_to_the_threshold_is_reported_by_onnx():
    equal = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), 2)
    assert detections_by_onnx(*equal, PostprocessConfig(score_threshold=0.5))[-1] > 0


def test_places_without_a_detection_are_zero():
    box_deltas, class_logits = torch.zeros(2, len(ANCHORS), 4), torch.full((2, len(ANCHORS), 2), -9.0)
    class_logits[..., 0] = 9
    class_logits[0, 5] = torch.tensor([-9.0, 9.0])
    found = detections_by_onnx(box_deltas, class_logits, PostprocessConfig(max_detections=4))
    assert found[-1].tolist() == [1, 0]
    assert not any(output.reshape(2, 4, -1)[0, 1:].any() or output[1].any() for output in found[:3])


# ---- what the file says of itself -----------------------------------------------------------------------------


def test_onnx_keeps_the_facts_in_its_metadata(exported):
    session = onnxruntime.InferenceSession(exported(*ONNX), providers=["CPUExecutionProvider"])
    kept = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(fact) for name, fact in kept.items()} == FACTS


def test_onnx_names_its_dimensions(exported_detections):
    session = onnxruntime.InferenceSession(exported_detections, providers=["CPUExecutionProvider"])
    assert {port.name: port.shape for port in (*session.get_inputs(), *session.get_outputs())} == {
        "images": ["batch", 3, SIDE, SIDE],
        "boxes_xyxy": ["batch", 20, 4],
        "scores": ["batch", 20],
        "labels": ["batch", 20],
        "num_detections": ["batch"],
    }


def test_torch_export_keeps_the_facts_in_an_extra_file(exported):
    kept = {formats.FACTS_FILE: ""}
    torch.export.load(BytesIO(exported(*TORCH_EXPORT)), extra_files=kept)
    assert json.loads(kept[formats.FACTS_FILE]) == FACTS


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
def test_torchscript_keeps_the_facts_in_an_extra_file(exported):
    kept = {formats.FACTS_FILE: ""}
    torch.jit.load(BytesIO(exported(*TORCHSCRIPT)), _extra_files=kept)
    assert json.loads(kept[formats.FACTS_FILE]) == FACTS


@pytest.mark.parametrize("pair", [ONNX, TORCH_EXPORT], ids="-".join)
def test_the_file_does_not_say_where_the_source_code_lies(pair, exported):
    assert b"formats.py" not in exported(*pair)


# ---- verification ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return detector(*ONNX[1:])


@pytest.fixture(scope="module")
def all_boxes(model):
    """A network that says what the model does."""
    return formats.DecodedSSD(model)


@pytest.fixture(scope="module")
def detections(exported_detections):
    """A network that detects what the model does."""
    return FORMATS["onnx"].load(exported_detections)


@pytest.mark.parametrize("broken", [1e-3, torch.nan])
def test_a_single_score_that_differs_is_refused(model, all_boxes, images, broken):
    def network(batch):
        boxes_xyxy, scores = all_boxes(batch)
        scores[-1, 5, 0] += broken
        return boxes_xyxy, scores

    with pytest.raises(RunError, match=r"; 2 differ by more than 0.0001\. Nothing is written"):
        verify(model, network, images)


def test_differences_within_the_tolerance_are_told(model, all_boxes, images):
    def network(batch):
        boxes_xyxy, scores = all_boxes(batch)
        return boxes_xyxy + 2e-5, scores - 3e-5

    assert "largest difference 2e-05 of the image's side in boxes, 3e-05 in scores; 0 differ" in verify(
        model, network, images
    )


def test_the_best_detections_missing_are_refused(model, detections, images):
    def network(batch):
        *columns, counts = detections(batch)
        return *(column[:, 5:] for column in columns), counts - 5

    with pytest.raises(RunError, match=r"175 detections compared.* differ by more than"):
        verify(model, network, images, SETTINGS)


def test_detections_of_another_class_are_refused(model, detections, images):
    def network(batch):
        boxes_xyxy, scores, labels, counts = detections(batch)
        return boxes_xyxy, scores, labels % NUM_CLASSES + 1, counts

    with pytest.raises(RunError, match="differ by more than"):
        verify(model, network, images, SETTINGS)


def test_images_without_a_detection_verify_little_and_that_is_said(images, caplog):
    blind = detector(*ONNX[1:])
    for convolution in blind.class_head:
        convolution.bias[:: NUM_CLASSES + 1] = 99  # background

    def network(batch):
        count = len(batch)
        places = (torch.zeros(count, 1, 4), torch.zeros(count, 1), torch.zeros(count, 1, dtype=torch.int64))
        return *places, torch.zeros(count, dtype=torch.int64)

    assert verify(blind, network, images, SETTINGS).startswith("0 detections compared")
    assert "nothing is detected on these images, which verifies little" in caplog.text


def found(*rows):
    """Detections of class 1, their score and left edge each; the boxes are squares of a tenth of the side."""
    boxes_xyxy = torch.tensor([[left, 0.5, left + 0.1, 0.6] for _, left in rows]).reshape(-1, 4)
    return Detections(boxes_xyxy, torch.tensor([score for score, _ in rows]), torch.ones(len(rows), dtype=torch.int64))


@pytest.mark.parametrize(
    ("these", "those", "max_detections", "expected"),
    [
        ([(0.9, 0.2)], [], 3, False),
        ([(0.05001, 0.2)], [], 3, True),  # hardly above the threshold
        ([(0.9, 0.2)], [(0.90001, 0.22)], 3, True),  # of two that are as good, one suppresses the other
        ([(0.9, 0.2)], [(0.8, 0.22)], 3, False),  # a worse one cannot
        ([(0.9, 0.2)], [(0.9, 0.25)], 3, False),  # one that overlaps less cannot
        ([(0.6, 0.2)], [(0.9, 0.4), (0.60001, 0.7)], 2, True),  # the last place went to another
        ([(0.6, 0.2)], [(0.9, 0.4), (0.60001, 0.7)], 3, False),  # there was one more place
    ],
)
def test_a_detection_may_be_missing_where_rounding_decides(these, those, max_detections, expected):
    settings = PostprocessConfig(score_threshold=0.05, max_detections=max_detections)
    differences, may_be_missing = formats.account_for(found(*these), found(*those), settings)
    assert not (differences < formats.TOLERANCE).all()
    assert may_be_missing.item() == expected


def test_a_detection_is_compared_with_the_nearest_of_its_class():
    differences, _ = formats.account_for(found((0.9, 0.2)), found((0.9, 0.7), (0.8, 0.25)), SETTINGS)
    torch.testing.assert_close(differences, torch.tensor([[0.05, 0.1]]))


# ---- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment(sample_root, tmp_path_factory):
    """An experiment on the sample data, as far as exporting needs it."""
    folder = tmp_path_factory.mktemp("experiments") / "experiment_7"
    names = [category["name"] for category in json.loads(annotations(sample_root).read_bytes())["categories"]]
    splits = {
        split: {"images": f"images/{split}", "annotations": f"annotations/instances_{split}.json"}
        for split in ("train", "val")
    }
    config = DetectionConfig(
        data={"root": str(sample_root), **splits},
        model={"backbone": "ResNet18SlimBackbone_B", "neck": "dense_fpn", "neck_channels": 16, "input_size": SIDE},
        train={"epochs": 1, "batch_size": 2},
    )
    weights = build_ssd(config.model, len(names)).state_dict()
    state = {"step": 7, "model": weights, "ema": None, "data": {"classes": names}}
    save_checkpoint(folder / "checkpoints/step_000000007.pt", state)
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


def annotations(root):
    return root / "annotations/instances_val.json"


@pytest.fixture
def command(monkeypatch, tmp_path, run_in_process):
    """Run `python -m detection.export ...` in an empty folder; returns its exit code, what it printed, its errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_in_process, command_line)


def test_the_command_writes_a_verified_file_under_the_experiments_name(command, experiment, tmp_path):
    code, out, errors = command(experiment, "--format", "torchscript")
    assert (code, errors) == (0, [])
    assert " boxes compared with PyTorch's, of 8 images, one alone and all in a batch: largest difference " in out
    assert "written to experiment_7.torchscript: " in out
    assert "for any number of images of 96 x 96" in out
    assert [path.name for path in tmp_path.iterdir()] == ["experiment_7.torchscript"]


def test_the_file_says_how_images_are_prepared_and_what_the_outputs_are(command, experiment, tmp_path):
    assert command(experiment, "--postprocess", "--output", tmp_path / "a.onnx")[0] == 0
    kept = {prop.key: json.loads(prop.value) for prop in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert kept["input_size"] == kept["preprocessing"]["input_size"] == SIDE
    assert kept["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert kept["outputs"].keys() == {"boxes_xyxy", "scores", "labels", "num_detections"}
    assert kept["postprocessing"] == PostprocessConfig().model_dump()
    assert len(kept["classes"]) == len(kept["category_ids"]) > 1
    assert kept["step"] == 7


def test_the_example_of_the_documentation_finds_what_the_detector_does(command, finished_detector, tmp_path, capsys):
    photo = next((finished_detector.parent.parent / "sample/images/val").iterdir())
    shutil.copy(photo, tmp_path / "photo.jpg")
    assert command(finished_detector, "--postprocess", "--output", "experiment_N_postprocess.onnx")[0] == 0
    page = (Path(__file__).parents[2] / "docs/detection.md").read_text()
    (example,) = (code for code in re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M) if "onnxruntime" in code)
    exec(example, {})
    name, score, box_xyxy = re.match(r"(\w+) (\S+) \[(.+)\]\n", capsys.readouterr().out).groups()
    expected = load(finished_detector, "cpu")(photo)
    assert name == expected.class_names[0]
    assert float(score) == pytest.approx(expected.scores[0], abs=0.01)  # which was computed in bf16
    assert [float(side) for side in box_xyxy.split()] == pytest.approx(expected.boxes_xyxy[0], abs=0.1)


def test_images_can_be_named(command, experiment, sample_root):
    image = next(sample_root.glob("images/train/*"))
    out = command(experiment, image, "--format", "torchscript")[1]
    assert "compared with PyTorch's, of an image, alone and in a batch: " in out


def test_the_format_is_that_of_the_output_s_suffix(command, experiment, sample_root, tmp_path):
    assert command(experiment, next(sample_root.glob("images/val/*")), "--output", "a.torchscript")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.torchscript"]


def test_the_example_stands_in_one_line_of_the_help(command):
    example = "\nexample: python -m detection.export experiments/experiment_3 --format onnx --postprocess\n"
    assert example in command("-h")[1]


def test_an_image_that_is_none_is_an_error_before_anything_is_exported(command, experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "export", None)
    (tmp_path / "page.jpg").write_text("<html>")
    code, _, [error] = command(experiment, tmp_path / "page.jpg")
    assert code == 2
    assert "page.jpg: cannot be decoded" in error


def test_validation_images_that_are_not_there_are_to_be_replaced(command, experiment, tmp_path):
    (tmp_path / "moved/checkpoints").mkdir(parents=True)
    checkpoint = "checkpoints/step_000000007.pt"
    (tmp_path / "moved" / checkpoint).write_bytes((experiment / checkpoint).read_bytes())
    config = (experiment / "config.yaml").read_text()
    (tmp_path / "moved/config.yaml").write_text(config.replace("instances_val.json", "gone.json"))
    code, _, [error] = command(tmp_path / "moved")
    assert code == 2
    assert "no images to verify on, name some on the command line; of those it knows: " in error
    assert "gone.json: cannot be read" in error


def test_nothing_is_written_of_what_differs(command, experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "TOLERANCE", -1)
    code, _, [error] = command(experiment, "--format", "torchscript")
    assert code == 1
    assert "differ by more than -1. Nothing is written" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["--output", "a.onnx"]], ids=["here", "named"])
def test_a_folder_that_cannot_be_written_in_is_an_error_before_anything_is_read(command, monkeypatch, arguments):
    def fail(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(formats, "TemporaryFile", fail)
    Path("a_detector").mkdir()
    code, _, [error] = command("a_detector", *arguments)
    assert code == 2
    assert error.endswith(".onnx: cannot be written: Read-only file system")


@pytest.mark.parametrize(
    ("detector", "file"),
    [
        ("experiments/experiment_3", "experiment_3.onnx"),
        ("experiments/experiment_3/checkpoints/best.pt", "experiment_3_best.onnx"),
        ("saved_weights/cells.safetensors", "cells.onnx"),
    ],
)
def test_unless_told_it_writes_here_under_a_name_that_tells_what_it_is(monkeypatch, tmp_path, detector, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / detector).parent.mkdir(parents=True)
    (tmp_path / detector).mkdir() if detector.endswith("_3") else (tmp_path / detector).touch()
    assert command_line.parse_arguments([detector]).output == Path(file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "torchscript", "--postprocess"], "--postprocess: only in --format onnx, not in torchscript"),
        (["--output", "a.pt2", "--postprocess"], "--postprocess: only in --format onnx, not in torch-export"),
        (["--output", "a.pt2", "--format", "onnx"], "--output a.pt2: expected a file *.onnx (--format onnx) in a dir"),
        (["--output", "a.tflite"], "--output a.tflite: expected a file *.onnx (--format onnx) in a directory"),
        (["--output", "absent/a.onnx"], "--output absent/a.onnx: expected a file *.onnx (--format onnx) in a dir"),
    ],
)
def test_a_command_line_that_cannot_be_done_is_an_error(command, experiment, arguments, said):
    code, _, [error] = command(experiment, *arguments)
    assert code == 2
    assert said in error


def test_what_is_not_installed_is_named_with_the_cure(command, experiment, monkeypatch):
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == "onnxruntime" else name)
    code, _, [error] = command(experiment)
    assert code == 2
    assert "--format onnx: onnxruntime not installed: pip install -e '.[export]'" in error
