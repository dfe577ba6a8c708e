"""weights/registry.py: registry entries, names in configs, weights files, and the command `python -m weights`."""

import functools
import hashlib
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision.models
from torch import nn

import weights.__main__ as weights
from detection.network.backbones import TRUNKS
from engine.checkpoint import save_checkpoint
from model import SWIN_VARIANTS, SwinTransformer
from weights import registry as module
from weights.registry import (
    describe,
    entry_named,
    find_weights,
    initial_weights,
    read_registry,
    read_weights,
    strip_common_prefix,
)
from weights.release import save_release

ONE, TWO = {"x": torch.ones(2)}, {"x": torch.full((2,), 2.0)}
ENTRIES = {entry.name: entry for entry in read_registry().weights}


PUBLISHED_BY_TORCHVISION = {
    weights.url: weights
    for model in ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152", "Swin_T", "Swin_S", "Swin_B")
    for weights in getattr(torchvision.models, f"{model}_Weights")
}


def each_entry_of(*sources: str):
    return pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.source in sources])


# ---- the registry


def test_entries_are_unique_fit_a_trunk_and_have_a_source():
    assert len(ENTRIES) == len({entry.file for entry in ENTRIES.values()}) == len(read_registry().weights)
    assert {entry.trunk for entry in ENTRIES.values()} <= TRUNKS.keys()
    assert {entry.source for entry in ENTRIES.values()} == read_registry().sources.keys()


def test_the_defaults_fit_their_trunk_and_were_trained_on_one_data_set_only():
    for data, names in read_registry().defaults.items():
        for trunk, name in names.items():
            assert (ENTRIES[name].trunk, ENTRIES[name].trained_on) == (trunk, (data,))


@each_entry_of("torchvision")
def test_torchvisions_entries_agree_with_torchvision(name):
    entry = ENTRIES[name]
    published = PUBLISHED_BY_TORCHVISION[entry.url]
    assert entry.top1 == published.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert entry.image_size == published.transforms.keywords["crop_size"]
    assert [entry.resize_size] == published.transforms().resize_size
    assert entry.file == Path(entry.url).name
    assert entry.sha256 == module.HASH_IN_NAME.search(entry.file)[1]


def test_every_version_that_torchvision_publishes_has_an_entry():
    urls = {entry.url for entry in ENTRIES.values() if entry.source == "torchvision"}
    assert urls == PUBLISHED_BY_TORCHVISION.keys()


@each_entry_of("microsoft", "timm")
def test_the_other_entries_agree_with_timm(name):
    swin_transformer = pytest.importorskip("timm.models.swin_transformer")
    published = {
        url: config
        for model, default in swin_transformer.default_cfgs.items()
        for tag, config in default.cfgs.items()
        for url in (
            config.url,
            f"https://huggingface.co/{config.hf_hub_id}{model}.{tag}/resolve/main/model.safetensors",
        )
    }
    entry = ENTRIES[name]
    config = published[entry.url]
    assert config.input_size == (3, entry.image_size, entry.image_size)
    if entry.source == "timm":  # Microsoft resized differently
        assert entry.resize_size == int(entry.image_size / config.crop_pct)
    assert config.num_classes == {"imagenet1k": 1000, "imagenet22k": 21841}[entry.trained_on[-1]]
    assert config.license == read_registry().sources[entry.source].licence.lower()
    assert f"window{entry.window_size}_{entry.image_size}" in entry.file


# ---- what a config names


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to an empty directory, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def put_file(here):
    """Return a function that creates an empty file at the path of an entry's file."""

    def put(name: str) -> Path:
        path = Path("saved_weights", entry_named(name).file)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    return put


@pytest.mark.parametrize(
    ("value", "trunk", "name"),
    [
        ("imagenet1k", "resnet50", "torchvision_resnet50_v1"),
        ("imagenet1k", "swin_t", "torchvision_swin_t"),
        ("imagenet22k", "swin_l", "microsoft_swin_l_224_22k"),
        ("timm_swin_b_384", "swin_b", "timm_swin_b_384"),
        ("timm", "swin_t", "timm_swin_t_224"),
    ],
)
def test_a_data_set_selects_the_default_of_the_trunk_and_a_name_its_entry(put_file, value, trunk, name):
    path = put_file(name)
    assert find_weights(value, trunk) == (path, name, entry_named(name).url)


@pytest.mark.parametrize("value", ["imagenet1k", "torchvision_swin_t"])
def test_the_error_about_a_missing_file_names_the_command_and_the_url(here, value):
    with pytest.raises(ValueError) as error:
        find_weights(value, "swin_t")
    for fact in ("saved_weights/swin_t-704ceda3.pth", str(here), "python -m weights fetch torchvision_swin_t",
                 "https://download.pytorch.org/models/swin_t-704ceda3.pth"):  # fmt: skip
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("value", "trunk", "message"),
    [
        ("imagenet1k", "swin_l", "no default .*'swin_l'.* resnet50, resnet101, .*swin_b;"),
        ("torchvision_swin_s", "swin_t", "swin_s.* swin_t.* torchvision_swin_t, microsoft_swin_t_224,"),
        ("experiments", "swin_t", "experiments/checkpoints: no checkpoint"),
        ("timm", "swin_b", "2 weights of timm .* fit swin_b.* timm_swin_b_224, timm_swin_b_384$"),
        ("timm", "resnet50", "0 weights of timm .* fit resnet50.* torchvision_resnet50_v1, torchvision_resnet50_v2$"),
        ("imagnet1k", "swin_t", r"no such file.* did you mean 'imagenet1k'"),
    ],
)
def test_the_error_about_missing_or_unfit_weights_suggests_a_cure(here, value, trunk, message):
    Path("experiments").mkdir()
    with pytest.raises(ValueError, match=message):
        find_weights(value, trunk)


def test_a_file_selects_itself_and_an_experiment_its_newest_checkpoint(here):
    Path("my.pth").touch()
    assert find_weights("my.pth", "swin_t") == (Path("my.pth"), None, None)
    folder = Path("experiments/experiment_1/checkpoints")
    for name in ("step_000000009.pt", "step_000000010.pt", "best.pt"):
        save_checkpoint(folder / name, {})
    assert find_weights("experiments/experiment_1", "swin_t").path == folder / "step_000000010.pt"


@pytest.mark.parametrize("value", ["imagenet1k", "my.pth"])
def test_the_record_of_weights_has_the_name_in_the_config_the_entry_the_source_and_the_hash(put_file, value):
    path = put_file("torchvision_swin_t").rename("my.pth") if value == "my.pth" else put_file("torchvision_swin_t")
    entry, digest = entry_named("torchvision_swin_t"), hashlib.sha256().hexdigest()
    record = initial_weights("trunk", value, find_weights(value, "swin_t"), "a note")
    is_file = value == "my.pth"
    assert record.model_dump() == {
        "part": "trunk",
        "name": value,
        "entry": None if is_file else entry.name,
        "source": "my.pth" if is_file else entry.url,
        "file": str(path),
        "sha256": digest,
        "note": "a note",
    }
    for fact in ("trunk", value if is_file else entry.name, record.source, digest[:8], "a note"):
        assert fact in record.describe()


# ---- what a file holds


def save_as(name: str, content: object) -> Path:
    """Save tensors in the format that the file name implies."""
    if name == "public.safetensors":
        safetensors.torch.save_file(content, name, metadata={"format": "pt"})
    elif name == "release.safetensors":
        save_release(Path(name), content, {"step": "7"})
    else:
        torch.save(content, name)
    return Path(name)


@pytest.mark.parametrize("name", ["a.pth", "public.safetensors", "release.safetensors"])
def test_weights_can_be_read_from_every_format(here, name):
    assert torch.equal(read_weights(save_as(name, ONE))["x"], ONE["x"])


@pytest.mark.parametrize(
    ("ema", "average", "expected"),
    [({"weights": TWO}, True, TWO), ({"weights": TWO}, False, ONE), (None, True, ONE), (None, False, ONE)],
)
def test_a_checkpoint_gives_the_moving_average_or_the_raw_weights(here, ema, average, expected):
    save_checkpoint(Path("a.pt"), {"model": ONE, "ema": ema})
    assert torch.equal(read_weights(Path("a.pt"), average)["x"], expected["x"])


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"hello", b"error", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_the_error_about_a_corrupt_file_names_it_and_the_cure(here, name, content):
    Path(name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .* again"):
        read_weights(Path(name))


def test_code_in_a_file_is_not_run(here):
    Path("a.pth").write_bytes(pickle.dumps(functools.partial(Path.touch, Path("ran")), protocol=2))
    with pytest.raises(ValueError, match="holds code"):
        read_weights(Path("a.pth"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", [ONE], "list, expected a dictionary"),
        ("a.pth", {"a": 1}, "'a' is not a tensor"),
        ("a.pth", {"student": ONE, "teacher": TWO}, "'student' is not a tensor"),
        ("resnet18-deadbeef.pth", ONE, "SHA-256 .*deadbeef"),
    ],
)
def test_a_file_without_unambiguous_weights_is_rejected(here, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_weights(save_as(name, content))


WRAPPED = [
    (lambda weights: weights, ""),
    (lambda weights: {"model": weights, "optimizer": {"state": {0: {"exp_avg": ONE["x"]}}}}, "'model'"),
    (lambda weights: {"model_state_dict": weights, "model_ema": weights}, "'model_state_dict'"),
    (lambda weights: {"net": weights, "step": torch.tensor(3).item()}, "'net'"),
    (lambda weights: {"state_dict": weights, "best_acc1": torch.tensor(0.7)}, "'state_dict'"),
    (lambda weights: {"model": {"state_dict": weights}}, "'state_dict'"),
]


@pytest.mark.parametrize(("wrap", "note"), WRAPPED)
@pytest.mark.parametrize(
    ("prefix", "first"),
    [("", "conv1.weight"), ("module.", "patch_embed.proj.weight"), ("module.encoder.", "features.0.0.weight")],
)
def test_wrappers_and_prefixes_are_removed_and_logged(here, caplog, wrap, note, prefix, first):
    caplog.set_level("INFO")
    weights = {first: torch.ones(2), "norm.weight": torch.zeros(2)}
    path = save_as("a.pth", wrap({prefix + name: value for name, value in weights.items()}))
    read = read_weights(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert note in caplog.text
    assert (f"{prefix!r}" in caplog.text) == bool(prefix)


@pytest.mark.parametrize(
    "names",
    [
        ["module.conv1.weight", "queue"],  # not all names have the prefix
        ["features.1.weight", "features.2.weight"],  # without the prefix, not a known model
        ["conv1.weight", "conv1.bias"],
        ["x"],
    ],
)
def test_all_other_names_are_unchanged(names):
    weights = {name: torch.ones(1) for name in names}
    assert strip_common_prefix(weights) == weights


# ---- describing a file


def build_slim_swin() -> SwinTransformer:
    return SwinTransformer(**SWIN_VARIANTS["swin_slim"], num_classes=10)


@pytest.mark.parametrize(
    ("make", "family"),
    [
        (
            build_slim_swin,
            "Swin Transformer, swin_slim, embed_dim 32, depths (2, 2, 6, 2), num_heads (1, 2, 4, 8), num_classes 10",
        ),
        (
            lambda: torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [5, 5], num_classes=3),
            "Swin Transformer, unknown variant, embed_dim 16",
        ),
        (
            lambda: nn.ModuleDict({"neck": nn.Linear(2, 3), "class_head": nn.ModuleList([nn.Linear(2, 3)])}),
            "not a Swin classifier, with modules class_head, neck",
        ),
    ],
)
def test_an_architecture_is_recognised_by_parameter_names_and_shapes(here, make, family):
    assert describe(save_as("a.pth", make().state_dict()))["family"].startswith(family)


def test_an_entry_is_recognised_by_its_checksum_or_without_one_by_its_file_name(here, monkeypatch):
    assert describe(save_as("swin_tiny_patch4_window7_224.pth", ONE))["registry"] == "microsoft_swin_t_224"
    path = save_as("renamed.pth", ONE)
    entry = entry_named("torchvision_swin_t").model_copy(update={"sha256": module.file_sha256(path)[:8]})
    monkeypatch.setattr(module, "read_registry", lambda: registry)
    registry = read_registry().model_copy(update={"weights": (entry,)})
    assert describe(path)["registry"] == "torchvision_swin_t"


# ---- the command


@pytest.fixture
def command(here, run_in_process):
    """Return a function that runs `python -m weights ...` and returns exit code, output and errors."""
    return functools.partial(run_in_process, weights)


@pytest.fixture
def published(here, file_server, monkeypatch):
    """Set up a registry with one entry, "tiny", whose file is on a local server, and return the server."""
    file_server.files["tiny.pth"] = save_as("original.pth", nn.Linear(2, 3).state_dict()).read_bytes()
    update = {"name": "tiny", "file": "tiny.pth", "url": f"{file_server.url}/tiny.pth"}
    entry = entry_named("microsoft_swin_t_224").model_copy(update=update)
    registry = read_registry().model_copy(update={"weights": (entry,), "defaults": {}})
    monkeypatch.setattr(module, "read_registry", lambda: registry)
    return file_server


def test_list_has_a_line_for_every_entry_and_shows_what_is_downloaded(command, put_file):
    put_file("torchvision_swin_t")
    code, out, _ = command("list")
    text, _, timm = out.partition("\n\n")
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert code == 0
    assert "python -m weights fetch timm/" in timm
    assert lines.keys() == ENTRIES.keys() | {"name"}
    assert [name for name, line in lines.items() if line.endswith("yes")] == ["torchvision_swin_t"]


def test_fetch_downloads_a_file_once_to_where_a_config_finds_it(command, published):
    for _ in range(2):
        code, out, _ = command("fetch", "tiny")
        assert code == 0
        assert f"SHA-256:  {module.file_sha256(Path('original.pth'))}" in out
    assert len(published.requests) == 1
    assert find_weights("tiny", "swin_t").path == Path("saved_weights/tiny.pth")
    command("fetch", "tiny", "--to", "elsewhere/deep")
    assert Path("elsewhere/deep/tiny.pth").is_file()


def test_a_web_page_instead_of_weights_is_removed(command, published):
    published.files["tiny.pth"] = b"<!DOCTYPE html> Log in"
    code, _, errors = command("fetch", "tiny")
    assert code == 2
    assert "tiny.pth: expected plain data" in errors[-1]
    assert list(Path("saved_weights").iterdir()) == []


def test_inspect_describes_a_run_by_its_experiment_and_a_release(command):
    state = {"step": 12, "model": build_slim_swin().state_dict(), "ema": None}
    save_checkpoint(Path("experiments/experiment_1/checkpoints/step_000000012.pt"), state)
    _, out, _ = command("inspect", "experiments/experiment_1")
    assert "checkpoint of a run of this project" in out
    assert "swin_slim" in out
    save_as("release.safetensors", ONE)
    assert "release of this project: step" in command("inspect", "release.safetensors")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "gone.pth"], "gone.pth: no such file"),
        (["inspect", "torchvision_swin_t"], "python -m weights fetch torchvision_swin_t"),
        (
            ["fetch", "torchvision_swin"],
            "did you mean 'torchvision_swin_",
        ),
    ],
)
def test_a_missing_file_or_name_is_a_one_line_error(command, words, message):
    code, _, [error] = command(*words)
    assert code == 2
    assert message in error
