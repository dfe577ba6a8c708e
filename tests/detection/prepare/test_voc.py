"""detection/prepare/voc.py: every box where it was, every defect with its file and place."""

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
    """A folder as the development kit has it, with two images of 40 x 30 pixels to train on and one to validate."""
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
    """Gives an image other objects."""

    def rewrite(*objects, name="000005", width=40, height=30):
        text = XML.format(name=name, width=width, height=height, objects="".join(objects))
        (kit / f"Annotations/{name}.xml").write_text(text)

    return rewrite


@pytest.fixture
def boxes(kit, objects):
    """The boxes of an image after the conversion."""
    return lambda name="000005", half="train": [
        box for file, _, box, _ in objects(kit / f"annotations/instances_{half}.json") if file == f"{name}.jpg"
    ]


# ---- boxes --------------------------------------------------------------------------------------------------------


def test_pixels_count_from_one_and_the_last_belongs_to_the_box(kit, command, objects):
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
        ((31, 21, 45, 30), [], [30, 20, 10, 10], "boxes cut at the edge of their image: 1"),
    ],
    ids=["from 0", "at pixel 0", "fractions of a pixel", "over the edge"],
)
def test_a_box_is_where_it_was_and_a_change_is_counted(kit, command, rewrite, boxes, corners, options, box, note):
    rewrite(thing(*corners))
    code, printed, _ = command("convert", "voc", kit, *options)
    assert code == 0
    assert note in printed
    assert boxes() == [box]


def test_difficult_objects_become_crowds(kit, command, rewrite, objects):
    rewrite(thing(1, 1, 10, 10), thing(11, 11, 20, 20, difficult=1))
    code, printed, _ = command("convert", "voc", kit)
    assert code == 0
    assert "difficult objects that became crowds, which are neither trained on nor scored: 1" in printed
    crowds = [crowd for name, *_, crowd in objects(kit / "annotations/instances_train.json") if name == "000005.jpg"]
    assert crowds == [0, 1]


def test_classes_are_those_of_both_halves_in_alphabetical_order(kit, command, rewrite):
    rewrite(thing(1, 1, 10, 10, name="ant"), name="000007")
    assert command("convert", "voc", kit)[0] == 0
    for half in ("train", "val"):
        content = json.loads((kit / f"annotations/instances_{half}.json").read_text())
        assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "ant"), (2, "cat"), (3, "dog")]


# ---- halves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "val"), [("mine", "rest"), ("mine.txt", "rest.txt")])
def test_other_lists_can_be_named_and_may_be_files_of_names_with_or_without_suffix(kit, command, objects, train, val):
    for suffix, folder in (("xml", "Annotations"), ("jpg", "JPEGImages")):
        (kit / f"{folder}/000012.{suffix}").rename(kit / f"{folder}/my dog.{suffix}")
    folder = kit if train.endswith(".txt") else kit / "ImageSets/Main"
    (folder / "mine.txt").write_text("000005.jpg\n\nmy dog\n")
    (folder / "rest.txt").write_text("000007")
    assert command("convert", "voc", kit, "--train", train, "--val", val)[0] == 0
    names = [{name for name, *_ in objects(kit / f"annotations/instances_{half}.json")} for half in ("train", "val")]
    assert names == [{"000005.jpg", "my dog.jpg"}, {"000007.jpg"}]


@pytest.mark.parametrize(
    ("xml_dir", "images_dir"),
    [("{}", "{}"), ("images/{}", "images/{}"), ("annotations/{}", "images/{}"), ("{}/Annotations", "{}/JPEGImages")],
)
def test_halves_may_be_in_folders(kit, tmp_path, command, objects, xml_dir, images_dir):
    root = tmp_path / "other"
    for half, name in (("train", "000005"), ("train", "000012"), ("valid", "000007")):
        for file, folder in ((f"Annotations/{name}.xml", xml_dir), (f"JPEGImages/{name}.jpg", images_dir)):
            (root / folder.format(half)).mkdir(parents=True, exist_ok=True)
            shutil.copy(kit / file, root / folder.format(half))
    assert command("convert", "voc", root)[0] == 0
    assert [len(objects(root / f"annotations/instances_{half}.json")) for half in ("train", "val")] == [3, 1]


@pytest.mark.parametrize("has_list", [True, False])
def test_a_data_set_without_halves_is_converted_into_one_file_to_split(kit, command, has_list):
    shutil.rmtree(kit / "ImageSets")
    if has_list:  # of all images, as CVAT exports it
        (kit / "ImageSets/Main").mkdir(parents=True)
        (kit / "ImageSets/Main/default.txt").write_text("000005\n000007\n000012\n")
    code, printed, _ = command("convert", "voc", kit)
    assert code == 0
    words = shlex.split(printed.partition("`python -m detection.data ")[2].partition("`")[0])
    assert command(*words)[0] == 0  # the cure, to the letter
    assert (kit / "annotations/instances_val.json").exists()


def test_a_half_that_is_not_found_is_answered_with_what_could_be_it(kit, refused):
    (kit / "ImageSets/Main/val.txt").rename(kit / "ImageSets/Main/test.txt")
    (kit / "ImageSets/Main/trainval.txt").write_text("000005\n000012\n000007")
    text = refused("voc", kit)
    assert text.endswith("no val found, or it is empty; give --val test")  # not trainval, which holds train
    assert "no nope found, or it is empty; give --train " in refused("voc", kit, "--train", "nope", "--val", "test")


# ---- images and sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "filename"), [("000005", "000012.jpg"), ("a photo", "C:/x/../a photo.jpg")])
def test_the_image_is_the_one_of_the_same_name_or_else_of_filename(kit, command, boxes, name, filename):
    (kit / "JPEGImages/000005.jpg").rename(kit / f"JPEGImages/{name}.jpg")
    path = kit / "Annotations/000005.xml"
    path.write_text(path.read_text().replace("000005.jpg", filename))
    assert command("convert", "voc", kit)[0] == 0
    assert boxes(name) == [[0, 0, 40, 30]]


@pytest.mark.parametrize(
    ("said", "taken"), [((30, 40), (30, 40)), ((40, 30), (40, 30)), ((0, 0), (30, 40)), ((41, 30), None)]
)
def test_of_an_image_that_is_turned_either_size_is_accepted(kit, command, rewrite, said, taken):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(kit / "JPEGImages/000005.jpg", exif=exif)
    rewrite(thing(1, 1, 5, 5), width=said[0], height=said[1])
    code, printed, _ = command("convert", "voc", kit)
    assert (code == 0) == bool(taken)
    if taken:
        record = json.loads((kit / "annotations/instances_train.json").read_text())["images"][0]
        assert (record["width"], record["height"]) == taken
    else:
        assert "says 41 x 30 pixels, but 000005.jpg has 40 x 30" in printed


# ---- what cannot be converted -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (thing(20, 5, 10, 9), "<bndbox> has 20, 5, 10, 9; expected xmin, ymin, xmax, ymax"),
        (thing(41, 1, 50, 9), "a box from corner to corner of 40, 0, 50, 9 pixels is outside its image of 40 x 30"),
        (thing("x", 1, 50, ""), "<bndbox> has x, 1, 50, nothing; expected xmin, ymin, xmax, ymax"),
        (thing(1, 1, "inf", 9), "<bndbox> has 1, 1, inf, 9; expected"),
        (thing(1, 1, 5, 5, name=" "), "no <name>"),
        ("\n<object><name>dog</name></object>", "<bndbox> has nothing, nothing, nothing, nothing"),
    ],
)
def test_a_bad_object_is_named_with_its_number(kit, refused, rewrite, bad, message):
    rewrite(thing(1, 1, 5, 5), bad)
    text = refused("voc", kit)
    assert f"000005.xml: object 2: {message}" in text
    assert "1 defect, listed above; nothing was written" in text


BOMB = "".join(f"<!ENTITY x{n} '{f'&x{n - 1};' * 20}'>" for n in range(1, 9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotation><object>", "not XML: no element found: line 1"),
        (b"<html></html>", "holds <html>, expected <annotation>"),
        (b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation>&x;</annotation>", "not XML: undefined"),
        (f"<!DOCTYPE a [<!ENTITY x0 'x'>{BOMB}]><annotation>&x8;</annotation>".encode(), "not XML: limit on input"),
    ],
    ids=["cut", "html", "external entity", "growing entity"],
)
def test_a_file_that_is_no_annotation_is_named(kit, refused, content, message):
    (kit / "Annotations/000005.xml").write_bytes(content)
    assert f"000005.xml: {message}" in refused("voc", kit)


def test_one_xml_file_for_all_images_is_called_so_by_every_command(tmp_path, command):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images/a.jpg")
    (tmp_path / "annotations.xml").write_text('<annotations><image id="0" name="a.jpg"/></annotations>')
    for words in (["layout"], ["check"], ["convert", "voc"]):
        code, printed, errors = command(*words, tmp_path)
        assert code == 2
        assert "annotations.xml" in (text := printed + errors[0])
        assert "one XML file for all images, which is not Pascal VOC" in text
        assert "export COCO" in text
        assert "convert voc" not in text


def test_all_defects_come_at_once(kit, refused, rewrite):
    rewrite(thing(20, 5, 10, 9), thing(41, 1, 50, 9))
    (kit / "JPEGImages/000012.jpg").unlink()
    (kit / "JPEGImages/000007.jpg").write_bytes(b"<html>")
    (kit / "ImageSets/Main/train.txt").write_text("000005\n000012\n000099\n")
    text = refused("voc", kit)
    parts = (
        "000012.xml: no image of this name",
        "JPEGImages/000007.jpg: cannot be decoded",
        "000099.xml: cannot be read",
    )
    for part in (*parts, "4 defects, listed"):
        assert part in text


def test_two_files_for_one_image_are_a_defect(kit, refused):
    shutil.copy(kit / "Annotations/000005.xml", kit / "Annotations/copy.xml")
    (kit / "ImageSets/Main/train.txt").write_text("000005\ncopy\n")
    assert "000005.jpg is the image of another file, too" in refused("voc", kit)
