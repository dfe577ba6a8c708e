"""detection.predict as users start it, on images, folders, patterns and videos."""

import json
import os
import struct
from functools import partial

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detection import predict as predict_command
from detection import prediction
from detection.detector import BATCH_SIZE, load
from detection.prediction import _frames


@pytest.fixture
def predict(finished_detector, tmp_path, monkeypatch, run_in_process):
    """Run `python -m detection.predict EXPERIMENT ...` in an empty folder; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_in_process, predict_command, finished_detector)


@pytest.fixture
def photos(tmp_path, finished_detector):
    """Create a folder with three different images, one in a subfolder, and two paths that are not images."""
    source = next((finished_detector.parent.parent / "sample/images/val").iterdir())
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    image = Image.open(source).convert("RGB")
    image.save(folder / "a.jpg")
    image.resize((300, 200)).save(folder / "b.png")
    image.convert("L").resize((90, 250)).save(folder / "more/a.tif")
    (folder / "notes.txt").write_text("not an image")
    (folder / "album.png").mkdir()
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_pictures_of_a_folder_keep_their_relative_paths(predict, photos, tmp_path):
    code, out, _ = predict(photos)
    assert code == 0
    written = sorted(str(path.relative_to(tmp_path / "predictions")) for path in tmp_path.glob("predictions/**/*.*"))
    assert written == ["a.jpg", "b.jpg", "more/a.jpg"]
    assert Image.open(tmp_path / "predictions/b.jpg").size == (800, 533)
    assert "3 images" in out


def test_the_json_files_are_valid_coco_and_name_each_image(predict, photos, tmp_path, finished_detector):
    predict(photos, "--json", "--output", "found")
    header = json.loads((tmp_path / "found/images.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(header | {"annotations": []}))
    results = COCO(tmp_path / "truth.json").loadRes(str(tmp_path / "found/detections.json"))
    assert header["info"]["score_function"] == "softmax"
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in header["images"]}
    assert sizes == {str(photos / "a.jpg"): (160, 160), str(photos / "b.png"): (300, 200),
                     str(photos / "more/a.tif"): (90, 250)}  # fmt: skip
    detector = load(finished_detector, "cpu")
    assert {category["id"]: category["name"] for category in header["categories"]} == dict(
        zip(detector.category_ids, detector.class_names, strict=True)
    )
    for image in header["images"]:
        assert results.imgToAnns[image["id"]]
        for found in results.imgToAnns[image["id"]]:
            assert found["bbox"][0] + found["bbox"][2] <= image["width"] + 0.01


def test_files_of_an_earlier_run_are_replaced_and_the_score_threshold_is_applied(predict, photos, tmp_path):
    predict(photos / "a.jpg", "--json", "--score", 0.99)
    before = contents(tmp_path / "predictions")
    assert predict(photos / "a.jpg", "--json", "--score", 0.45)[0] == 0
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert {"a.jpg", "detections.json"} <= changed
    scores = [found["score"] for found in json.loads((tmp_path / "predictions/detections.json").read_text())]
    assert 0 < len(scores) <= 50
    assert min(scores) >= 0.45


def test_each_file_is_processed_once_and_none_in_the_output_folder(predict, photos):
    for _ in range(2):
        assert "2 images" in predict(photos / "a.jpg", photos / "b.png", f"{photos}/*.*", "--output", photos / "out")[1]


def test_more_images_than_a_batch_keep_their_order(predict, photos, tmp_path):
    names = [f"{number:02}.jpg" for number in range(2 * BATCH_SIZE + 1)]
    for name in names:
        (tmp_path / name).write_bytes((photos / "a.jpg").read_bytes())
    assert predict(*names, "--json")[0] == 0
    images = json.loads((tmp_path / "predictions/images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == names


def test_unreadable_files_are_reported_and_skipped(predict, photos, tmp_path):
    (photos / "b.png").write_bytes(b"<!DOCTYPE html>")
    code, out, [error] = predict(photos, "missing.jpg", "--json")
    assert code == 2
    assert "b.png: cannot be decoded" in out
    assert "missing.jpg: no such file" in out
    assert "2 of 4 files skipped" in error
    assert [image["id"] for image in json.loads((tmp_path / "predictions/images.json").read_text())["images"]] == [1, 2]


def test_a_file_whose_name_is_not_utf_8_is_processed(predict, photos, tmp_path):
    (photos / "a.jpg").rename(photos / os.fsdecode(b"caf\xe9.jpg"))
    assert predict(photos, "--json")[0] == 0
    assert (tmp_path / "predictions" / os.fsdecode(b"caf\xe9.jpg")).is_file()
    images = json.loads((tmp_path / "predictions/images.json").read_text())["images"]
    assert str(photos / os.fsdecode(b"caf\xe9.jpg")) in [image["file_name"] for image in images]


def test_originals_with_the_same_name_get_different_pictures(predict, photos, tmp_path):
    predict(f"{photos}/**/a.*", "--json")
    images = json.loads((tmp_path / "predictions/images.json").read_text())["images"]
    assert {image["file_name"]: image["picture"] for image in images} == {
        f"{photos}/a.jpg": "a.jpg", f"{photos}/more/a.tif": "a_2.jpg",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["b.jpg", "detections.json"])
def test_a_file_that_the_command_did_not_write_is_not_replaced(predict, photos, monkeypatch, name):
    Image.new("RGB", (8, 8)).save(photos / name, format="JPEG")  # not a JSON file either
    before = contents(photos)
    monkeypatch.setattr(prediction, "load", None)  # must not be reached
    code, _, [error] = predict(photos / "b.png", "--output", photos, "--json")
    assert code == 2
    assert f"{photos / name}: not made by detection.predict" in error
    assert contents(photos) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty"], "empty: no image"),
        (["empty/*.jpg"], "empty/*.jpg: no file"),
        (["photos", "--output", "photos"], "--output photos"),
        (["photos/a.jpg", "--output", "photos"], "a.jpg would be overwritten"),
        (["photos/a.jpg", "--score", "1"], "'1': expected a number from 0"),
        (["photos/a.jpg", "--output", "photos/a.jpg"], "expected a folder"),
    ],
)
def test_an_invalid_command_line_is_refused_and_changes_nothing(predict, photos, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    code, _, [error] = predict(*words)
    assert code == 2
    assert message in error
    assert contents(tmp_path) == before


# ---- videos ---------------------------------------------------------------------------------------------------


def write_video(path, pictures):
    av = pytest.importorskip("av")
    with av.open(path, "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels in pictures:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        video.mux(stream.encode())


@pytest.fixture
def video(tmp_path, photos):
    """Write a video of eleven frames, more than a batch, of 160 x 120 pixels."""
    pixels = np.array(Image.open(photos / "a.jpg"))[:120]
    write_video(tmp_path / "clip.mp4", [np.roll(pixels, 5 * shift, axis=1) for shift in range(11)])
    return tmp_path / "clip.mp4"


def test_a_video_gives_a_video_and_an_image_record_per_frame(predict, video, photos, tmp_path):
    code, out, _ = predict(video, photos / "a.jpg", "--json")
    assert (code, "12 images" in out) == (0, True)
    images = json.loads((tmp_path / "predictions/images.json").read_text())["images"]
    assert [image["id"] for image in images] == list(range(1, 13))  # first the image, then the frames
    assert images[4] == {
        "id": 5, "file_name": str(video), "picture": "clip.mp4", "frame": 3, "width": 160, "height": 120,
    }  # fmt: skip
    frames = [(rate, picture.shape) for rate, batch in _frames(tmp_path / "predictions/clip.mp4") for picture in batch]
    assert frames == [(10, (600, 800, 3))] * 11


def test_a_video_of_an_earlier_run_is_replaced_but_a_foreign_video_is_not(predict, video, tmp_path):
    video.rename(tmp_path / "clip.mov")
    assert [predict("clip.mov")[0] for _ in range(2)] == [0, 0]
    written = tmp_path / "predictions/clip.mp4"
    write_video(written, [np.zeros((64, 64, 3), np.uint8)])
    before = written.read_bytes()
    code, _, [error] = predict("clip.mov")
    assert (code, written.read_bytes() == before) == (2, True)
    assert "predictions/clip.mp4: not made by detection.predict" in error


def test_a_video_with_a_rotation_is_turned_upright(tmp_path):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48] = 255  # upper left
    write_video(tmp_path / "a.mp4", [pixels])
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise
    (tmp_path / "a.mp4").write_bytes(content)
    ((_, (upright,)),) = _frames(tmp_path / "a.mp4")
    assert upright.shape == (96, 64, 3)
    corners = [bool(upright[y, x, 0] > 128) for y, x in ((9, 9), (9, 54), (86, 9), (86, 54))]
    assert corners == [False, True, False, False]


@pytest.mark.parametrize("content", [b"no video" * 99, None], ids=["text", "truncated"])
def test_an_unreadable_video_is_reported_and_leaves_no_file(predict, video, tmp_path, content):
    video.write_bytes(video.read_bytes()[:3000] if content is None else content)
    code, out, [error] = predict(video, "photos/a.jpg", "--json")
    assert code == 2
    assert "clip.mp4: cannot be read as a video: " in out
    assert "error: 1 of 2 files skipped" in error
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "a.jpg", "detections.json", "images.json",
    ]  # fmt: skip


def test_without_pyav_the_error_for_a_video_has_the_install_command(predict, photos, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (photos / "clip.mov").write_bytes(b"")
    code, _, [error] = predict(photos)
    assert code == 2
    assert "pip install -e '.[video]'" in error
