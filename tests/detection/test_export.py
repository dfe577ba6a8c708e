"""detection/export.py: exported files compute what the detector does and describe how to use it."""

import json
import re
import shutil
from functools import cache, partial
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from detection import export as command_line
from detection import load
from detection.deployment import formats
from detection.deployment.formats import FORMATS, add_postprocessing, verify
from detection.network.anchors import ANCHOR_SCALES, default_boxes
from detection.network.boxes import decode_boxes
from detection.network.heads import class_scores, logits_per_box
from detection.network.postprocess import PostprocessConfig, postprocess
from detection.network.ssd import SSD, ModelConfig, build_ssd
from engine.command import RunError

SIDE, NUM_CLASSES = 96, 3
FACTS = {"classes": ["cat", "Kätzchen 猫", "dog"], "category_ids": [3, 7, 90]}
SETTINGS = PostprocessConfig(score_threshold=0.05, max_detections=20)
ONNX = ("onnx", "ResNet18SlimBackbone_A", "none")
TORCH_EXPORT = ("torch-export", "SwinSlimBackbone_B", "fpn")
RECIPES = [  # score function and changed fields of the model
    ("sigmoid", {"head_tower": 2}),
    ("softmax", {"head_tower": 4, "anchor_scales": (0.08, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)}),
]
TIMM = (  # a model of each family
    "resnet10t", "regnetx_002", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto",
    "swin_tiny_patch4_window7_224", "maxvit_rmlp_pico_rw_256", "pvt_v2_b0", "poolformer_s12", "edgenext_xx_small",
    "fastvit_t8", "efficientvit_b0", "tiny_vit_5m_224", "densenet121", "ghostnet_050",
)  # fmt: skip
SLOW = [  # take ten times as long as the rest
    pytest.param(pair, marks=pytest.mark.slow)
    for pair in (("onnx", "SwinSlimBackbone_B", "pan"), ("onnx", "ResNet18SlimBackbone_A", "bifpn"))
]


def detector(backbone: str, neck: str, side: int = SIDE, score_function: str = "softmax", **changes) -> SSD:
    """Return a detector with random weights that gives confident scores. changes: fields of ModelConfig."""
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, neck=neck, neck_channels=16, input_size=side, **changes)
    model = build_ssd(config, NUM_CLASSES, score_function).eval().requires_grad_(False)
    for convolution in (*model.box_head, *model.class_head):
        convolution.weight.normal_(std=0.02)
        convolution.bias.zero_()
    return model


@pytest.fixture(scope="module")
def images():
    return 255 * torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported():
    """Return a cached function that exports a detector and returns the content of the file."""
    return cache(lambda *pair: formats.export(detector(*pair[1:]), pair[0], FACTS))


@pytest.fixture(scope="module")
def model():
    return detector(*ONNX[1:])


@pytest.fixture(scope="module")
def exported_detections(exported, model):
    """Add post-processing to the exported file, without tracing the model again."""
    proto = onnx.load_from_string(exported(*ONNX))
    add_postprocessing(proto, len(model.anchors_cxcywh), NUM_CLASSES, SETTINGS)
    return formats.save_onnx(proto, FACTS)


@pytest.mark.parametrize("pair", [ONNX, TORCH_EXPORT, *SLOW], ids="-".join)
def test_the_file_computes_what_the_model_does_for_one_image_and_for_a_batch(pair, exported, images):
    assert "; 0 differ" in verify(detector(*pair[1:]), FORMATS[pair[0]].load(exported(*pair)), images)


def test_with_postprocessing_the_file_returns_the_detections_of_the_model_and_postprocess(model, detections, images):
    line = verify(model, detections, images, SETTINGS)
    assert "compared 200 detections of 3 image(s)" in line  # 20 in each of 5 images, in both directions
    assert "; 0 differ" in line


@pytest.mark.parametrize(("score_function", "changes"), RECIPES)
def test_towers_scales_and_both_kinds_of_scores_are_exported_to_onnx_with_postprocessing(
    images, score_function, changes
):
    model = detector("ResNet18SlimBackbone_B", "fpn", score_function=score_function, **changes)
    program = onnx.load_from_string(formats.export(model, "onnx", FACTS))
    network = FORMATS["onnx"].load(program.SerializeToString())
    assert "; 0 differ" in verify(model, network, images)
    _, all_scores = network(images)
    torch.testing.assert_close(all_scores, class_scores(model(images)[1], score_function), atol=1e-5, rtol=0)
    add_postprocessing(program, len(model.anchors_cxcywh), NUM_CLASSES, SETTINGS)
    line = verify(model, FORMATS["onnx"].load(formats.save_onnx(program, FACTS)), images, SETTINGS)
    assert "compared 200 detections" in line
    assert "; 0 differ" in line


@pytest.mark.parametrize(("score_function", "changes"), RECIPES)
def test_towers_scales_and_both_kinds_of_scores_are_exported_to_torch_export(images, score_function, changes):
    model = detector("ResNet18SlimBackbone_B", "none", score_function=score_function, **changes)
    network = FORMATS["torch-export"].load(formats.export(model, "torch-export", FACTS))
    assert "; 0 differ" in verify(model, network, images)
    all_scores = class_scores(model(images)[1], score_function)
    torch.testing.assert_close(network(images)[1], all_scores, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_gives_the_same_detections_in_onnx(name):
    pytest.importorskip("timm")
    model = detector(f"timm/{name}", "fpn", side=128)
    images = 255 * torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    line = verify(model, FORMATS["onnx"].load(formats.export(model, "onnx", FACTS, SETTINGS)), images, SETTINGS)
    assert "; 0 differ" in line
    assert "compared 0 detections" not in line


# ---- post-processing in ONNX ------------------------------------------------------------------------------------

ANCHORS = default_boxes([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], ANCHOR_SCALES["ssd"])


def detections_by_onnx(box_deltas, class_logits, settings, score_function="softmax"):
    """Run only the post-processing, in ONNX, on all boxes and scores."""
    boxes_xyxy = decode_boxes(box_deltas, ANCHORS).clamp(0, 1)
    scores = class_scores(class_logits, score_function).contiguous()
    kinds = {"all_boxes_xyxy": ["batch", len(ANCHORS), 4], "all_scores": ["batch", *scores.shape[1:]]}
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, kind) for name, kind in kinds.items()]
    opset = [onnx.helper.make_opsetid("", formats.OPSET)]
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "part", inputs, []), opset_imports=opset, ir_version=10)
    add_postprocessing(proto, len(ANCHORS), scores.shape[-1], settings)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"all_boxes_xyxy": boxes_xyxy.numpy(), "all_scores": scores.numpy()})


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("quantum", [None, 2.0], ids=["distinct scores", "many ties"])
@pytest.mark.parametrize(("score_threshold", "max_detections"), [(0.0, 9000), (0.05, 200), (0.999999, 5)])
def test_detections_by_onnx_equal_postprocess(score_threshold, max_detections, quantum, score_function):
    generator = torch.Generator().manual_seed(max_detections)
    box_deltas = torch.randn(3, len(ANCHORS), 4, generator=generator) * 2
    columns = logits_per_box(NUM_CLASSES, score_function)
    class_logits = torch.randn(3, len(ANCHORS), columns, generator=generator) * 4
    class_logits[0, :50, 2] += 40  # scores of exactly 1
    class_logits[1, :, 0] += 10 if score_function == "softmax" else -10  # the second image has fewer detections
    if quantum is not None:
        class_logits = (class_logits / quantum).round() * quantum
    settings = PostprocessConfig(score_threshold=score_threshold, max_detections=max_detections)
    expected = postprocess(box_deltas, class_logits, ANCHORS, **settings.model_dump(), score_function=score_function)
    boxes_xyxy, scores, labels, counts = detections_by_onnx(box_deltas, class_logits, settings, score_function)
    assert counts.tolist() == [len(image.scores) for image in expected]
    for image, count in enumerate(counts):
        assert labels[image, :count].tolist() == expected[image].labels.tolist()
        torch.testing.assert_close(torch.from_numpy(scores[image, :count]), expected[image].scores, atol=1e-6, rtol=0)
        found_boxes = torch.from_numpy(boxes_xyxy[image, :count])
        torch.testing.assert_close(found_boxes, expected[image].boxes_xyxy, atol=1e-6, rtol=0)


def test_padding_is_zero_and_a_score_equal_to_the_threshold_is_a_detection():
    equal = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), 2)
    assert detections_by_onnx(*equal, PostprocessConfig(score_threshold=0.5))[-1] > 0
    box_deltas, class_logits = torch.zeros(2, len(ANCHORS), 4), torch.full((2, len(ANCHORS), 2), -9.0)
    class_logits[..., 0] = 9
    class_logits[0, 5] = torch.tensor([-9.0, 9.0])
    found = detections_by_onnx(box_deltas, class_logits, PostprocessConfig(max_detections=4))
    assert found[-1].tolist() == [1, 0]
    assert not any(output.reshape(2, 4, -1)[0, 1:].any() or output[1].any() for output in found[:3])


# ---- metadata -------------------------------------------------------------------------------------------------


def test_onnx_names_its_dimensions_and_stores_the_facts_in_its_metadata(exported_detections):
    session = onnxruntime.InferenceSession(exported_detections, providers=["CPUExecutionProvider"])
    kept = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(fact) for name, fact in kept.items()} == FACTS
    assert {port.name: port.shape for port in (*session.get_inputs(), *session.get_outputs())} == {
        "images": ["batch", 3, SIDE, SIDE],
        "boxes_xyxy": ["batch", 20, 4],
        "scores": ["batch", 20],
        "labels": ["batch", 20],
        "num_detections": ["batch"],
    }


@pytest.mark.parametrize("pair", [ONNX, TORCH_EXPORT], ids="-".join)
def test_the_file_does_not_contain_paths_of_the_source_code(pair, exported):
    assert b"formats.py" not in exported(*pair)


# ---- comparing with the PyTorch model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detections(exported_detections):
    """Load the exported network with post-processing."""
    return FORMATS["onnx"].load(exported_detections)


def test_a_single_nan_score_is_refused(model, images):
    def network(batch):
        boxes_xyxy, scores = formats.DecodedSSD(model)(batch)
        scores[-1, 5, 0] = torch.nan
        return boxes_xyxy, scores

    with pytest.raises(RunError, match="; 2 differ by more than"):
        verify(model, network, images)


def test_a_few_detections_may_differ_because_rounding_decides_between_equal_ones(model, detections, images):
    def network(batch):
        boxes_xyxy, *rest = detections(batch)
        if len(batch) > 1:
            boxes_xyxy[0, -1] += 0.5
        return boxes_xyxy, *rest

    assert "; 2 differ" in verify(model, network, images, SETTINGS)


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda boxes_xyxy, scores, labels, counts: (boxes_xyxy[:, 1:], scores[:, 1:], labels[:, 1:], counts - 1),
        lambda boxes_xyxy, scores, labels, counts: (boxes_xyxy, scores, labels % NUM_CLASSES + 1, counts),
    ],
    ids=["the best are missing", "different class"],
)
def test_detections_that_differ_are_refused(model, detections, images, corrupt):
    with pytest.raises(RunError, match="differ by more than"):
        verify(model, lambda batch: corrupt(*detections(batch)), images, SETTINGS)


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path, run_in_process):
    """Run `python -m detection.export ...` in an empty folder; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_in_process, command_line)


def test_the_command_names_the_file_after_the_experiment(command, finished_detector, tmp_path):
    code, out, errors = command(finished_detector, "--format", "torch-export")
    assert (code, errors) == (0, [])
    assert "boxes of 8 image(s)" in out  # of the validation images
    assert [path.name for path in tmp_path.iterdir()] == ["experiment_7.pt2"]
    kept = {formats.FACTS_FILE: ""}
    torch.export.load(tmp_path / "experiment_7.pt2", extra_files=kept)
    assert json.loads(kept[formats.FACTS_FILE])["step"] == 3


def test_the_documented_example_gives_the_detections_of_the_detector(command, finished_detector, tmp_path, capsys):
    photo = next((finished_detector.parent.parent / "sample/images/val").iterdir())
    shutil.copy(photo, tmp_path / "photo.jpg")
    assert command(finished_detector, "photo.jpg", "--postprocess", "--output", "experiment_N_postprocess.onnx")[0] == 0
    page = (Path(__file__).parents[2] / "docs/detection.md").read_text()
    (example,) = (code for code in re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M) if "onnxruntime" in code)
    exec(example, {})
    name, score, box_xyxy = re.match(r"(\w+) (\S+) \[(.+)\]\n", capsys.readouterr().out).groups()
    expected = load(finished_detector, "cpu")(photo)
    assert name == expected.class_names[0]
    assert float(score) == pytest.approx(expected.scores[0], abs=0.01)  # the expected score was computed in bf16
    assert [float(side) for side in box_xyxy.split()] == pytest.approx(expected.boxes_xyxy[0], abs=0.1)
    kept = {prop.key: json.loads(prop.value) for prop in onnx.load("experiment_N_postprocess.onnx").metadata_props}
    assert kept["preprocessing"]["done_by_the_model"]["mean"] == [0.485, 0.456, 0.406]
    assert kept["postprocessing"] == load(finished_detector, "cpu").config.eval.model_dump()


def test_unreadable_or_missing_images_are_an_error_before_the_export_starts(
    command, finished_detector, tmp_path, monkeypatch
):
    monkeypatch.setattr(formats, "export", None)
    (tmp_path / "page.jpg").write_text("<html>")
    code, _, [error] = command(finished_detector, tmp_path / "page.jpg")
    assert (code, "page.jpg" in error) == (2, True)
    shutil.copytree(finished_detector, tmp_path / "moved")
    config = (tmp_path / "moved/config.yaml").read_text()
    (tmp_path / "moved/config.yaml").write_text(config.replace("instances_val.json", "gone.json"))
    code, _, [error] = command(tmp_path / "moved")
    assert code == 2
    assert "gone.json" in error
    assert "on the command line" in error


def test_an_export_that_differs_is_not_written(command, finished_detector, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "TOLERANCE", -1)
    code, _, [error] = command(finished_detector, "--format", "torch-export")
    assert code == 1
    assert "Nothing is written" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["experiments/experiment_3/checkpoints/best.pt"], "experiment_3_best.onnx"),
        (["saved_weights/cells.safetensors", "--postprocess"], "cells_postprocess.onnx"),
        (["experiments/experiment_3/", "--output", "a.pt2"], "a.pt2"),
    ],
)
def test_the_output_has_the_name_of_the_detector_and_the_suffix_of_the_format(monkeypatch, tmp_path, words, file):
    monkeypatch.chdir(tmp_path)
    Path(words[0]).parent.mkdir(parents=True)
    Path(words[0]).mkdir() if words[0].endswith("/") else Path(words[0]).touch()
    arguments = command_line.parse_arguments(words)
    assert arguments.output == Path(file)
    assert command_line.FORMATS[arguments.format] == Path(file).suffix


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--output", "a.pt2", "--postprocess"], ["--postprocess", "torch-export"]),
        (["--output", "a.pt2", "--format", "onnx"], ["a.pt2", "*.onnx"]),
        (["--output", "absent/a.onnx"], ["absent/a.onnx", "existing, writable directory"]),
    ],
)
def test_a_bad_command_line_is_an_error(command, finished_detector, arguments, parts):
    code, _, [error] = command(finished_detector, *arguments)
    assert code == 2
    assert all(text in error for text in parts)


def test_a_missing_package_is_named(command, finished_detector, monkeypatch):
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == "onnxruntime" else name)
    code, _, [error] = command(finished_detector)
    assert code == 2
    assert "onnxruntime not installed: pip install -e '.[export]'" in error
