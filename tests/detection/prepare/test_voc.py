"""detection/prepare/voc.py: boxes keep their place, and defects are reported with file and object."""

import json
import shlex
import shutil

import pytest
from PIL import Image

XML = """<annotation>
  <folder>VOC2007</folder>
  <filename>{name}.jpg</filename>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>
  <segmented>0</segmented>{objects}
</annotation>
"""
OBJECT = """
  <object>
    <name>{name}</name>
    <pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>"""


def thing(*corners, name="dog", difficult=0):
    return OBJECT.format(*corners, name=name, difficult=difficult)


@pytest.fixture
def kit(tmp_path):
    """Create a development kit of two training images and one validation image, 40 x 30 pixels each."""
    root = tmp_path / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, objects in (
        ("000005", thing(1, 1, 40, 30)),
        ("000012", thing(11, 6, 20, 10) + thing(2, 3, 4, 5, name="cat")),
        ("000007", thing(5, 5, 9, 9, name="cat")),
    ):
        Image.new("RGB", (40, 30)).save(root / f"JPEGImages/{name}.jpg")
        text = XML.format(name=name, width=40, height=30, objects=objects)
        (root / f"Annotations/{name}.xml").write_text(text)
    (root / "ImageSets/Main/train.txt").write_text("000005\n000012\n")
    (root / "ImageSets/Main/val.txt").write_text("000007\n")
    (root / "ImageSets/Main/dog_train.txt").write_text("000005  1\n000012 -1\n")
    return root


@pytest.fixture
def rewrite(kit):
    """Return a function that replaces the objects of an image."""

    def rewrite(*objects, name="000005", width=40, height=30):
        text = XML.format(name=name, width=width, height=height, objects="".join(objects))
        (kit / f"Annotations/{name}.xml").write_text(text)

    return rewrite


@pytest.fixture
def boxes(kit, objects):
    """Return a function that reads the boxes of an image after the conversion."""
    return lambda name="000005", split="train": [
        box for file, _, box, _ in objects(kit / f"annotations/instances_{split}.json") if file == f"{name}.jpg"
    ]


# ---- boxes --------------------------------------------------------------------------------------------------------


def test_pixels_count_from_one_and_the_last_pixel_is_inside_the_box(kit, command, objects):
    assert command("convert", "voc", kit)[0] == 0
    assert objects(kit / "annotations/instances_train.json") == [
        ("000005.jpg", "dog", [0, 0, 40, 30], 0),
        ("000012.jpg", "dog", [10, 5, 10, 5], 0),
        ("000012.jpg", "cat", [1, 2, 3, 3], 0),
    ]


@pytest.mark.parametrize(
    ("corners", "options", "box", "note"),
    [
        ((0, 0, 40, 30), ["--zero-based"], [0, 0, 40, 30], ""),
        ((0, 3, 10, 10), [], [0, 2, 10, 8], "--zero-based): 1"),
        ((2.5, 3, 10.25, 10), [], [1.5, 2, 8.75, 8], ""),
        ((31, 21, 45, 30), [], [30, 20, 10, 10], "boxes clipped at the edge of their image: 1"),
    ],
    ids=["from 0", "at pixel 0", "fractions of a pixel", "over the edge"],
)
def test_a_box_keeps_its_place_and_changes_are_counted(kit, command, rewrite, boxes, corners, options, box, note):
    rewrite(thing(*corners))
    code, printed, _ = command("convert", "voc", kit, *options)
    assert code == 0
    assert note in printed
    assert boxes() == [box]


def test_difficult_objects_become_crowds(kit, command, rewrite, objects):
    rewrite(thing(1, 1, 10, 10), thing(11, 11, 20, 20, difficult=1))
    code, printed, _ = command("convert", "voc", kit)
    assert code == 0
    assert "neither trained on nor scored: 1" in printed
    crowds = [crowd for name, *_, crowd in objects(kit / "annotations/instances_train.json") if name == "000005.jpg"]
    assert crowds == [0, 1]


def test_classes_of_train_and_val_are_numbered_in_alphabetical_order(kit, command, rewrite):
    rewrite(thing(1, 1, 10, 10, name="ant"), name="000007")
    assert command("convert", "voc", kit)[0] == 0
    for split in ("train", "val"):
        content = json.loads((kit / f"annotations/instances_{split}.json").read_text())
        assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "ant"), (2, "cat"), (3, "dog")]


# ---- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "val"), [("mine", "rest"), ("mine.txt", "rest.txt")])
def test_lists_can_be_named_and_may_hold_names_with_or_without_suffix(kit, command, objects, train, val):
    for suffix, folder in (("xml", "Annotations"), ("jpg", "JPEGImages")):
        (kit / f"{folder}/000012.{suffix}").rename(kit / f"{folder}/my dog.{suffix}")
    folder = kit if train.endswith(".txt") else kit / "ImageSets/Main"
    (folder / "mine.txt").write_text("000005.jpg\n\nmy dog\n")
    (folder / "rest.txt").write_text("000007")
    assert command("convert", "voc", kit, "--train", train, "--val", val)[0] == 0
    names = [{name for name, *_ in objects(kit / f"annotations/instances_{split}.json")} for split in ("train", "val")]
    assert names == [{"000005.jpg", "my dog.jpg"}, {"000007.jpg"}]


@pytest.mark.parametrize(
    ("xml_dir", "images_dir"),
    [("{}", "{}"), ("images/{}", "images/{}"), ("annotations/{}", "images/{}"), ("{}/Annotations", "{}/JPEGImages")],
)
def test_splits_may_be_folders(kit, tmp_path, command, objects, xml_dir, images_dir):
    root = tmp_path / "folders"
    for split, name in (("train", "000005"), ("train", "000012"), ("valid", "000007")):
        for file, folder in ((f"Annotations/{name}.xml", xml_dir), (f"JPEGImages/{name}.jpg", images_dir)):
            (root / folder.format(split)).mkdir(parents=True, exist_ok=True)
            shutil.copy(kit / file, root / folder.format(split))
    assert command("convert", "voc", root)[0] == 0
    assert [len(objects(root / f"annotations/instances_{split}.json")) for split in ("train", "val")] == [3, 1]


@pytest.mark.parametrize("has_list", [True, False])
def test_a_data_set_without_splits_is_converted_into_one_file_to_split(kit, command, has_list):
    shutil.rmtree(kit / "ImageSets")
    if has_list:  # one list of all images, as in CVAT exports
        (kit / "ImageSets/Main").mkdir(parents=True)
        (kit / "ImageSets/Main/default.txt").write_text("000005\n000007\n000012\n")
    code, printed, _ = command("convert", "voc", kit)
    assert code == 0
    words = shlex.split(printed.partition("`python -m detection.data ")[2].partition("`")[0])
    assert command(*words)[0] == 0  # exactly the printed command
    assert (kit / "annotations/instances_val.json").exists()


def test_a_missing_split_is_an_error_that_lists_the_candidates(kit, conversion_error):
    (kit / "ImageSets/Main/val.txt").rename(kit / "ImageSets/Main/test.txt")
    (kit / "ImageSets/Main/trainval.txt").write_text("000005\n000012\n000007")
    text = conversion_error("voc", kit)
    assert text.endswith("val not found or empty; give --val test")  # not trainval, which contains train
    text = conversion_error("voc", kit, "--train", "nope", "--val", "test")
    assert "nope not found or empty; give --train " in text


# ---- images and sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "filename"), [("000005", "000012.jpg"), ("a photo", "C:/x/../a photo.jpg")])
def test_the_image_has_the_name_of_the_xml_file_or_else_of_its_filename_element(kit, command, boxes, name, filename):
    (kit / "JPEGImages/000005.jpg").rename(kit / f"JPEGImages/{name}.jpg")
    path = kit / "Annotations/000005.xml"
    path.write_text(path.read_text().replace("000005.jpg", filename))
    assert command("convert", "voc", kit)[0] == 0
    assert boxes(name) == [[0, 0, 40, 30]]


@pytest.mark.parametrize(
    ("stated", "expected"), [((30, 40), (30, 40)), ((40, 30), (40, 30)), ((0, 0), (30, 40)), ((41, 30), None)]
)
def test_the_stated_size_may_be_before_or_after_the_rotation(kit, command, rewrite, stated, expected):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(kit / "JPEGImages/000005.jpg", exif=exif)
    rewrite(thing(1, 1, 5, 5), width=stated[0], height=stated[1])
    code, printed, _ = command("convert", "voc", kit)
    assert (code == 0) == bool(expected)
    if expected:
        record = json.loads((kit / "annotations/instances_train.json").read_text())["images"][0]
        assert (record["width"], record["height"]) == expected
    else:
        assert "41 x 30 pixels, but 000005.jpg has 40 x 30" in printed


# ---- what cannot be converted -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (thing(20, 5, 10, 9), "<bndbox> is 20, 5, 10, 9; expected "),
        (thing(41, 1, 50, 9), "box (x1, y1, x2, y2) = (40, 0, 50, 9) pixels is outside its image of 40 x 30"),
        (thing("x", 1, 50, ""), "<bndbox> is x, 1, 50, nothing; expected "),
        (thing(1, 1, "inf", 9), "<bndbox> is 1, 1, inf, 9; expected "),
        (thing(1, 1, 5, 5, name=" "), "<name> is missing"),
        ("\n<object><name>dog</name></object>", "<bndbox> is nothing, nothing, nothing, nothing"),
    ],
)
def test_an_invalid_object_is_reported_with_its_number(kit, conversion_error, rewrite, bad, message):
    rewrite(thing(1, 1, 5, 5), bad)
    text = conversion_error("voc", kit)
    assert f"000005.xml: object 2: {message}" in text
    assert "1 defect," in text


BOMB = "".join(f"<!ENTITY x{n} '{f'&x{n - 1};' * 20}'>" for n in range(1, 9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotation><object>", "not XML: no element found: line 1"),
        (b"<html></html>", "root element is <html>, expected <annotation>"),
        (b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation>&x;</annotation>", "not XML: undefined"),
        (f"<!DOCTYPE a [<!ENTITY x0 'x'>{BOMB}]><annotation>&x8;</annotation>".encode(), "not XML: limit on input"),
    ],
    ids=["cut", "html", "external entity", "growing entity"],
)
def test_a_file_that_is_not_a_voc_annotation_is_reported(kit, conversion_error, content, message):
    (kit / "Annotations/000005.xml").write_bytes(content)
    assert f"000005.xml: {message}" in conversion_error("voc", kit)


def test_every_command_recognises_a_single_xml_file_for_all_images(tmp_path, command):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images/a.jpg")
    (tmp_path / "annotations.xml").write_text('<annotations><image id="0" name="a.jpg"/></annotations>')
    for words in (["layout"], ["check"], ["convert", "voc"]):
        code, printed, errors = command(*words, tmp_path)
        assert code == 2
        assert "annotations.xml" in (text := printed + errors[0])
        assert "one XML file for all images" in text
        assert "export the annotations in COCO" in text
        assert "convert voc" not in text


def test_all_defects_are_listed_at_once(kit, conversion_error, rewrite):
    rewrite(thing(20, 5, 10, 9), thing(41, 1, 50, 9))
    (kit / "JPEGImages/000012.jpg").unlink()
    (kit / "JPEGImages/000007.jpg").write_bytes(b"<html>")
    (kit / "ImageSets/Main/train.txt").write_text("000005\n000012\n000099\n")
    text = conversion_error("voc", kit)
    parts = (
        "000012.xml: no image with this name",
        "JPEGImages/000007.jpg: cannot be decoded",
        "000099.xml: cannot be read",
    )
    for part in (*parts, "4 defects, listed"):
        assert part in text


def test_two_files_for_one_image_are_a_defect(kit, conversion_error):
    shutil.copy(kit / "Annotations/000005.xml", kit / "Annotations/copy.xml")
    (kit / "ImageSets/Main/train.txt").write_text("000005\ncopy\n")
    assert "copy.xml: image 000005.jpg already has" in conversion_error("voc", kit)
