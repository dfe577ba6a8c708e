"""detection/coco/results.py: which results files are refused, which are warned about, and with which facts."""

import json

import numpy as np
import pytest

from data import DatasetError
from detection.coco.results import read_annotations, read_results_file

GOOD = {"image_id": 50, "category_id": 7, "bbox": [1, 2, 30.5, 4], "score": 0.5}
COCO_IDS = [*range(1, 12), *range(13, 26), 27, 28]  # with gaps, like COCO's 1 to 90


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def read(tmp_path, content):
    """Return a function that writes results and reads them for the annotations `content`."""

    def read(results, annotations=content, name="a.json"):
        coco = read_annotations(write(tmp_path / "val.json", annotations))
        return read_results_file(write(tmp_path / name, results), coco)

    return read


def message(read, *arguments, **options) -> str:
    with pytest.raises(DatasetError) as error:
        read(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def with_categories(content, ids):
    first = {"category_id": ids[0]}
    return content | {
        "categories": [{"id": number, "name": f"class {number}"} for number in ids],
        "annotations": [annotation | first for annotation in content["annotations"]],
    }


# ---- valid files -------------------------------------------------------------------------------------------


def test_detections_are_read_as_an_array_in_the_order_of_the_file(read):
    file = read([GOOD | {"segmentation": {}}, GOOD | {"image_id": 20.0, "category_id": 3.0, "score": 1}])
    assert np.array_equal(file.detections, [[50, 1, 2, 30.5, 4, 0.5, 7], [20, 1, 2, 30.5, 4, 1, 3]])
    assert file.detections.dtype == np.float64
    assert file.warnings == []


def test_annotations_are_read_without_image_files_but_are_checked(tmp_path, content):
    assert read_annotations(write(tmp_path / "val.json", content)).category_ids == [3, 7]
    content["annotations"][1]["category_id"] = 8
    with pytest.raises(DatasetError, match=r"annotations\[1\].*category_id 8"):
        read_annotations(write(tmp_path / "val.json", content))
    with pytest.raises(DatasetError, match="no objects"):
        read_annotations(write(tmp_path / "val.json", content | {"annotations": []}))


def test_boxes_beyond_the_image_and_empty_boxes_are_valid(read):
    assert len(read([GOOD | {"bbox": [-3, -2, 50, 0]}] * 2).detections) == 2


# ---- refused files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "facts"),
    [
        ({"images": [], "annotations": [], "categories": []}, ["annotation file", "JSON list"]),
        ({"predictions": []}, ["JSON dict", "predictions", "JSON list"]),
        ("3", ["JSON int"]),
        ("[{", ["not JSON"]),
        ([GOOD, 7], ["entry 1", "7"]),
        ([GOOD, [7]], ["entry 1", "[7]"]),
        *(
            ([GOOD, {key: value for key, value in GOOD.items() if key != field}], ["entry 1", repr(field)])
            for field in GOOD
        ),
        ([{"image_id": 50, "category_id": 7, "score": 0.5, "segmentation": {}}], ["segmentation", "bbox"]),
        ([{"image_id": 50, "category_id": 7, "bbox": [1, 2, 3, 4], "conf": 0.5}], ["conf", "0 to 1", "export"]),
        ([GOOD | {"image_id": None}], ["image_id is None", "2 image ids", "20 to 50"]),
        ([GOOD | {"image_id": 51}], ["image_id is 51", "2 image ids", "20 to 50", "no entry has a known image id"]),
        ([GOOD, GOOD | {"image_id": 51}], ["entry 1", "remove the detections of other images"]),
        ([GOOD | {"image_id": 10**400}], ["image_id is 1000"]),
        ([GOOD | {"image_id": True}], ["image_id is True"]),
        ([GOOD | {"image_id": "50"}], ["image_id is '50'", "integer 50"]),
        ([GOOD, GOOD | {"image_id": "50.0"}], ["entry 1", "image_id is '50.0'", "integer 50", "without quotes"]),
        ([GOOD | {"image_id": "50.5"}], ["image_id is '50.5'", "20 to 50"]),
        ([GOOD | {"image_id": "nan"}], ["image_id is 'nan'", "20 to 50"]),
        ([GOOD | {"image_id": 50.5}], ["image_id is 50.5", "20 to 50"]),
        ([GOOD | {"category_id": "7.0"}], ["category_id is '7.0'", "without quotes"]),
        ([GOOD | {"image_id": "b"}], ["image_id is 'b'", "expected 20", "ultralytics"]),
        ([GOOD | {"image_id": "more/b.png"}], ["expected 20, the id of more/b.png"]),
        ([GOOD | {"image_id": "c.png"}], ["image_id is 'c.png'", "20 to 50"]),
        ([GOOD, GOOD | {"category_id": 9}], ["entry 1", "category_id is 9", "2 ids", "3 to 7, with gaps"]),
        ([GOOD | {"category_id": "dog"}], ["category_id is 'dog'", "not names"]),
        ([GOOD | {"category_id": "7"}], ["category_id is '7'", "without quotes"]),
        ([GOOD | {"bbox": [1, 2, 3]}], ["bbox is [1, 2, 3]", "4 numbers"]),
        ([GOOD | {"bbox": [1, 2, 3, 4, 0.1]}], ["bbox is [1, 2, 3, 4, 0.1]", "4 numbers"]),
        ([GOOD | {"bbox": "1 2 3 4"}], ["bbox is '1 2 3 4'"]),
        ([GOOD | {"bbox": [1, 2, "3", 4]}], ["bbox is [1, 2, '3', 4]", "numbers"]),
        ([GOOD, GOOD | {"bbox": [1, float("nan"), 3, 4]}], ["entry 1", "nan", "finite"]),
        ([GOOD | {"bbox": [1, 2, 3, float("inf")]}], ["inf", "finite"]),
        ([GOOD | {"bbox": [9, 9, -3, 4]}] * 2, ["[9, 9, -3, 4]", "not negative", "first of 2"]),
        ([GOOD | {"score": float("nan")}], ["score is nan", "0 to 1"]),
        ([GOOD | {"score": None}], ["score is None", "0 to 1"]),
        ([GOOD | {"score": "0.9"}], ["score is '0.9'", "0 to 1"]),
        ([GOOD | {"score": 3.5}], ["score is 3.5", "0 to 1", "sigmoid"]),
        ([GOOD, GOOD | {"score": -0.1}], ["entry 1", "score is -0.1"]),
    ],
)
def test_an_invalid_file_is_refused_in_a_line_with_entry_value_and_expectation(read, results, facts):
    text = message(read, results)
    assert "a.json" in text
    assert [fact for fact in facts if fact not in text] == []


@pytest.mark.parametrize("name", ["a.pkl", "a.pt"])
def test_pickles_are_refused_by_their_suffix(read, name):
    assert "JSON list" in message(read, [], name=name)


@pytest.mark.parametrize(
    ("ids", "used", "start", "last"),
    [
        (COCO_IDS, range(26), 0, 25),
        (COCO_IDS, range(1, 27), 1, 26),
        (COCO_IDS, [0, 3], 0, 25),
        ([0, 1, 2], [1, 2, 3], 1, 3),
        ([1, 2, 3], [0, 1, 2], 0, 2),
    ],
)
def test_class_indices_in_place_of_category_ids_are_recognised(read, content, ids, used, start, last):
    text = message(read, [GOOD | {"category_id": number} for number in used], with_categories(content, ids))
    assert "contiguous class indices" in text
    assert f"replace {start} by {ids[0]}, ..., {last} by {ids[-1]}" in text


@pytest.mark.parametrize(
    ("ids", "used", "known"), [(COCO_IDS, [99], "1 to 28, with gaps"), ([0, 1, 2], [0, 3], "0 to 2")]
)
def test_other_unknown_categories_are_not_called_class_indices(read, content, ids, used, known):
    text = message(read, [GOOD | {"category_id": number} for number in used], with_categories(content, ids))
    assert "indices" not in text
    assert f"({known})" in text


# ---- warnings ----------------------------------------------------------------------------------------------


def scored(results):
    """Return the results with different scores."""
    return [each | {"score": (number + 1) / (len(results) + 1)} for number, each in enumerate(results)]


def grid_of_boxes(*shapes):
    return scored([GOOD | {"image_id": image_id, "bbox": box} for box in shapes for image_id in (20, 50)])


@pytest.mark.parametrize(
    ("results", "fact"),
    [
        ([], "no detections"),
        (grid_of_boxes([10, 10, 35, 25], [5, 5, 30, 20], [20, 15, 39, 29]), "[x1, y1, x2, y2]"),
        (grid_of_boxes([0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.25, 1.0]), "fractions"),
        (grid_of_boxes([10, 10, 5, 5], [100, 70, 60, 50], [160, 10, 90, 90], [5, 5, 8, 8]), "network input"),
        ([GOOD, GOOD | {"image_id": 20}], "all 2 scores are 0.5"),
    ],
)
def test_valid_files_that_look_wrong_are_warned_about(read, results, fact):
    (warning,) = read(results).warnings
    assert fact in warning
    assert "a.json: " in warning


def test_a_file_that_covers_few_of_the_images_with_objects_is_warned_about(read, content):
    images = [{"id": k, "file_name": f"{k}.png", "width": 40, "height": 30} for k in range(100, 104)]
    content["images"] += images
    assert read([GOOD]).warnings == []  # on one of two images with objects
    content["annotations"].append({"id": 4, "image_id": 100, "category_id": 3, "bbox": [1, 2, 3, 4]})
    (warning,) = read([GOOD, GOOD | {"image_id": 101, "score": 0.4}]).warnings
    assert "covers 2 of 6 images" in warning


def test_images_may_have_more_detections_than_coco_scores(read):
    results = scored([GOOD | {"image_id": image_id} for image_id in (20, 50)] * 150)
    assert len(read(results).detections) == 300
    assert read(results).warnings == []
