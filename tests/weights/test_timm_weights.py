"""weights/timm_weights.py: names, tags, sources and normalisation of timm's weights, and the commands for them."""

import csv
import dataclasses
import functools
import hashlib
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import weights.__main__ as weights
from weights.registry import find_weights, read_registry
from weights.timm_weights import TOP1, normalization, tags_of, timm_weights

timm = pytest.importorskip("timm")

TRUNK = "timm/convnext_tiny"
DEFAULT_TAG = "in12k_ft_in1k"
OTHER_TAG = "fb_in22k"
CONTENT = safetensors.torch.save({"stem.0.weight": torch.arange(40_000.0)})
SHA256 = hashlib.sha256(CONTENT).hexdigest()
STATED_SHA256 = {"X-Linked-Etag": f'"{SHA256}"'}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    Path("saved_weights").mkdir()
    return tmp_path


# ---- names


def test_accuracies_belong_to_weights_and_image_sizes_of_timm():
    with TOP1.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({line["name"] for line in lines}) == len(lines)
    for line in lines:
        weights = timm.get_pretrained_cfg(line["name"])
        assert weights, line
        assert int(line["image_size"]) == (weights.test_input_size or weights.input_size)[-1], line
        assert 50 < float(line["top1"]) < 95


def test_the_default_tag_is_first_and_is_that_of_timm():
    for model in ("convnext_tiny", "resnet50", "efficientnet_b0", "mobilenetv3_large_100"):
        assert tags_of(model)[0] == timm.create_model(model).pretrained_cfg["tag"]
        assert [f"{model}.{tag}" for tag in sorted(tags_of(model))] == sorted(timm.list_pretrained(f"{model}.*"))


def test_every_published_name_has_a_source_and_a_file_of_its_own():
    found = [timm_weights(*name.split(".", 1)) for name in [*timm.list_pretrained("convnext*"), "gcvit_tiny.in1k"]]
    assert len({each.file for each in found}) == len(found)
    assert all(each.url.startswith("https://") and each.name.startswith("timm/") for each in found)


@pytest.mark.parametrize("tag", [None, OTHER_TAG])
def test_the_url_is_on_the_hub_or_on_the_mirror_that_the_environment_names(tag, monkeypatch):
    name = f"convnext_tiny.{tag or DEFAULT_TAG}"
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    found = timm_weights("convnext_tiny", tag)
    assert found.url == f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
    assert (found.name, found.file, found.sha256) == (f"timm/{name}", f"{name}.safetensors", None)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert (
        timm_weights("convnext_tiny", tag).url == f"https://mirror.example/timm/{name}/resolve/main/model.safetensors"
    )


def test_old_weights_are_elsewhere_and_their_file_name_keeps_the_hash_that_is_checked_on_reading():
    found = timm_weights("gcvit_tiny")
    assert found.url == timm.models.get_pretrained_cfg("gcvit_tiny").url
    assert found.sha256 == "ac783954"
    assert found.file == "gcvit_tiny.in1k-ac783954.pth"


@pytest.mark.parametrize(
    "changes",
    [
        {"custom_load": "hf"},
        {"hf_hub_id": None, "url": "https://storage.example/model.npz"},
        {"hf_hub_id": None, "url": "https://storage.example/model.pth", "custom_load": True},
        {"hf_hub_id": None, "url": ("https://storage.example/1.pth", "https://storage.example/2.pth")},
    ],
)
def test_weights_that_only_timm_can_read_are_refused(monkeypatch, changes):
    config = dataclasses.replace(timm.models.get_pretrained_cfg("convnext_tiny"), **changes)
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda _: config)
    with pytest.raises(ValueError, match=rf"^timm/convnext_tiny\.{DEFAULT_TAG}: .*only timm"):
        timm_weights("convnext_tiny")


def test_normalisation_is_that_of_the_tag_or_of_the_default_tag():
    half, imagenet = (0.5, 0.5, 0.5), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalization("tf_efficientnet_lite0") == (half, half)
    assert normalization("efficientnet_b0") == normalization("efficientnet_b0", "my.pth") == imagenet
    assert normalization("efficientnet_b0", "ra4_e3600_r224_in1k") == (half, half)
    assert normalization("mobilenetv3_large_100", "miil_in21k") == ((0, 0, 0), (1, 1, 1))
    assert normalization("botnet50ts_256") == imagenet  # without published weights


# ---- what a config names


@pytest.mark.parametrize(("value", "tag"), [("timm", DEFAULT_TAG), (DEFAULT_TAG, DEFAULT_TAG), (OTHER_TAG, OTHER_TAG)])
def test_a_config_selects_the_default_or_another_tag(here, value, tag):
    path = Path("saved_weights", f"convnext_tiny.{tag}.safetensors")
    with pytest.raises(ValueError, match=rf"{path}: .*`python -m weights fetch timm/convnext_tiny\.{tag}`.*https://"):
        find_weights(value, TRUNK)
    path.touch()
    assert find_weights(value, TRUNK) == (path, f"{TRUNK}.{tag}", timm_weights("convnext_tiny", tag).url)


@pytest.mark.parametrize(("value", "tag"), [(TRUNK, DEFAULT_TAG), (f"{TRUNK}.{OTHER_TAG}", OTHER_TAG)])
def test_a_config_selects_weights_by_the_name_that_list_shows_and_fetch_takes(here, value, tag):
    Path(f"saved_weights/convnext_tiny.{tag}.safetensors").touch()
    assert find_weights(value, TRUNK) == find_weights(tag, TRUNK)


def test_a_tag_wins_over_a_file_of_the_same_name_except_for_one_with_a_folder(here):
    for name in (OTHER_TAG, "mine.pth", f"saved_weights/convnext_tiny.{OTHER_TAG}.safetensors"):
        Path(name).touch()
    assert find_weights(OTHER_TAG, TRUNK).name == f"{TRUNK}.{OTHER_TAG}"
    for path in (f"./{OTHER_TAG}", "mine.pth"):
        assert find_weights(path, TRUNK) == (Path(path), None, None)


@pytest.mark.parametrize(
    ("file", "trunk", "name"),
    [
        (f"saved_weights/convnext_tiny.{OTHER_TAG}.safetensors", TRUNK, f"{TRUNK}.{OTHER_TAG}"),
        ("gcvit_tiny.in1k-ac783954.pth", "timm/gcvit_tiny", "timm/gcvit_tiny.in1k"),
        (f"convnext_tiny.{OTHER_TAG}.safetensors", "timm/convnext_small", None),
        ("convnext_tiny.mine.safetensors", TRUNK, None),
        ("convnext_tiny.safetensors", TRUNK, None),
    ],
)
def test_the_path_of_a_fetched_file_has_the_tag_in_its_name_and_its_normalisation(here, file, trunk, name):
    Path(file).touch()
    assert find_weights(file, trunk) == (Path(file), name, None)


def test_no_tag_looks_like_a_path_or_is_a_name_in_the_registry():
    tags = {name.partition(".")[2] for name in timm.list_pretrained()}
    names = {"timm", "imagenet1k", "imagenet22k", *(entry.name for entry in read_registry().weights)}
    assert [tag for tag in tags if "/" in tag or tag in names] == []


@pytest.mark.parametrize(
    ("value", "trunk", "named"),
    [
        ("fb_in1kk", TRUNK, ["did you mean 'fb_in1k'", f"tags of {TRUNK}: {DEFAULT_TAG}, "]),
        ("imagenet1k", TRUNK, ["use fb_in1k, or timm"]),  # not in12k_ft_in1k, which names two data sets
        ("imagenet22k", TRUNK, ["use fb_in22k, or timm"]),
        ("torchvision_swin_t", TRUNK, [f"fits swin_t, not {TRUNK}", OTHER_TAG]),
        ("timm/resnet50.a1_in1k", TRUNK, [f"fits timm/resnet50, not {TRUNK}", OTHER_TAG]),
        ("timm/resnet50.a1_in1k", "resnet50", ["fits timm/resnet50, not resnet50", "torchvision_resnet50_v1"]),
        ("timm", "timm/botnet50ts_256", ["timm/botnet50ts_256: .*no weights"]),
        ("imagenet1k", "timm/botnet50ts_256", ["a file, an experiment, or null"]),
        ("a1_in1k", "timm/botnet50ts_256", ["no such file", "timm/botnet50ts_256: none", "null"]),
    ],
)
def test_the_error_about_unknown_or_unfit_weights_suggests_a_cure(here, value, trunk, named):
    with pytest.raises(ValueError) as error:
        find_weights(value, trunk)
    assert [text for text in named if not re.search(text, str(error.value))] == []
    assert "\n" not in str(error.value)


# ---- the commands


@pytest.fixture
def command(here, run_in_process):
    """Return a function that runs `python -m weights ...` and returns exit code, output and errors."""
    return functools.partial(run_in_process, weights)


@pytest.fixture
def hub(here, file_server, monkeypatch):
    """Start a server that redirects to a storage server as the Hugging Face hub does, and return it."""
    monkeypatch.setenv("HF_ENDPOINT", file_server.url)
    file_server.files["storage"] = CONTENT
    file_server.redirects["model.safetensors"] = ("storage", STATED_SHA256)
    return file_server


@pytest.mark.parametrize(("name", "tag"), [(TRUNK, DEFAULT_TAG), (f"{TRUNK}.{OTHER_TAG}", OTHER_TAG)])
def test_fetch_downloads_weights_once_to_where_a_config_finds_them(command, hub, name, tag):
    for _ in range(2):
        code, out, _ = command("fetch", name)
        assert code == 0
        assert f"SHA-256:  {SHA256}" in out
    assert len(hub.requests) == 1
    found = find_weights(tag, TRUNK)
    assert found.path.read_bytes() == CONTENT
    assert found.url == f"{hub.url}/timm/convnext_tiny.{tag}/resolve/main/model.safetensors"
    for words in (("fetch", name), ("inspect", name)):
        lines = command(*words)[1].splitlines()
        assert {f"name:     {TRUNK}.{tag}", f"source:   {found.url}", f"SHA-256:  {SHA256}"} <= {*lines}


def test_fetch_takes_several_names_and_checks_all_of_them_before_the_first_download(command, hub):
    names = [f"{TRUNK}.{tag}" for tag in (DEFAULT_TAG, OTHER_TAG)]
    assert command("fetch", *names, f"{TRUNK}.fb_in1kk")[0] == 2
    assert hub.requests == []
    code, out, _ = command("fetch", *names)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("name:")] == names
    assert all(find_weights(tag, TRUNK).path.is_file() for tag in (DEFAULT_TAG, OTHER_TAG))


def test_an_interrupted_fetch_resumes_in_the_next_call_because_the_hub_states_the_hash(command, hub):
    hub.cuts = [100_000] * 3
    assert command("fetch", TRUNK)[0] == 2
    hub.requests.clear()
    assert command("fetch", TRUNK)[0] == 0
    assert hub.requests == [("storage", "bytes=100000-")]


def test_a_file_with_a_different_hash_than_the_hub_states_is_rejected(command, hub):
    hub.files["storage"] = CONTENT[:-1] + b"x"
    code, _, errors = command("fetch", TRUNK)
    assert code == 2
    assert f"expected {SHA256}" in errors[-1]
    assert list(Path("saved_weights").iterdir()) == []


def test_without_a_stated_hash_the_file_must_contain_weights(command, hub):
    hub.redirects["model.safetensors"] = ("storage", {})
    assert command("fetch", TRUNK)[0] == 0
    hub.files["storage"] = b"<!DOCTYPE html> Log in"
    code, _, errors = command("fetch", f"{TRUNK}.{OTHER_TAG}")
    assert code == 2
    assert "not a safetensors file" in errors[-1]
    assert [path.name for path in Path("saved_weights").iterdir()] == [f"convnext_tiny.{DEFAULT_TAG}.safetensors"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fetch", "timm/convnext_tny"], "timm/convnext_tny: .*did you mean 'convnext_tiny'"),
        (["fetch", f"{TRUNK}.fb_in1kk"], "fb_in1kk.*did you mean 'fb_in1k'"),
        (["fetch", "timm/botnet50ts_256"], "timm/botnet50ts_256: .*no weights"),
        (["inspect", TRUNK], f"python -m weights fetch {TRUNK}.{DEFAULT_TAG}"),
        (["list", "timm/convnext_tny*"], "convnext_tny.*did you mean 'convnext_tiny'"),
    ],
)
def test_unknown_names_are_one_line_errors(command, words, message):
    code, _, [error] = command(*words)
    assert code == 2
    assert re.search(message, error)


def test_without_timm_the_error_names_the_command_that_installs_it(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for words in (["fetch", TRUNK], ["list", "timm/*"]):
        code, _, [error] = command(*words)
        assert code == 2
        assert "pip install -e '.[timm]'" in error
    assert command("list")[0] == 0


def test_list_shows_the_tags_that_match_a_pattern_their_licences_and_what_is_downloaded(command):
    Path(f"saved_weights/convnext_tiny.{OTHER_TAG}.safetensors").touch()
    code, out, _ = command("list", f"{TRUNK}*")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert code == 0
    assert lines.keys() == {f"timm/{name}" for name in timm.list_pretrained("convnext_tiny*")}
    licence = timm.models.get_pretrained_cfg("convnext_tiny").license or "unknown"
    assert lines[f"{TRUNK}.{DEFAULT_TAG}"] == ["yes", "224", "ImageNet", "ImageNet", "84.5", licence, "no"]
    assert [name for name, cells in lines.items() if cells[-1] == "yes"] == [f"{TRUNK}.{OTHER_TAG}"]
    assert "0.5 0.5 0.5" in command("list", "timm/tf_efficientnet_lite0.in1k")[1]
