"""weights/registry.py: it makes nothing up, what a config names, what a file holds; and the command."""

import functools
import pickle
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
    identified,
    read_registry,
    read_weights,
    read_weights_with_note,
    without_prefix,
)
from weights.release import save_release

ONE, TWO = {"x": torch.ones(2)}, {"x": torch.full((2,), 2.0)}
ENTRIES = {entry.name: entry for entry in read_registry().weights}


def entries_of(*sources: str):
    return pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.source in sources])


# ---- the registry


def test_names_and_files_are_there_once():
    assert len(ENTRIES) == len({entry.file for entry in ENTRIES.values()}) == len(read_registry().weights)


def test_the_defaults_are_of_their_trunk_and_of_one_data_set_alone():
    for data, names in read_registry().defaults.items():
        for trunk, name in names.items():
            assert (ENTRIES[name].trunk, ENTRIES[name].trained_on) == (trunk, (data,))


def test_every_entry_fits_a_trunk_and_has_a_source():
    assert {entry.trunk for entry in ENTRIES.values()} <= TRUNKS.keys()
    assert {entry.source for entry in ENTRIES.values()} == read_registry().sources.keys()


@entries_of("torchvision")
def test_torchvision_says_the_same_of_its_weights(name):
    entry = ENTRIES[name]
    published = {
        weights.url: weights
        for enum in ("ResNet50_Weights", "Swin_T_Weights", "Swin_S_Weights", "Swin_B_Weights")
        for weights in getattr(torchvision.models, enum)
    }[entry.url]
    assert entry.top1 == published.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert entry.image_size == published.transforms.keywords["crop_size"]
    assert [entry.resize_size] == published.transforms().resize_size
    assert entry.file == Path(entry.url).name
    assert entry.sha256 == module.PROMISED.search(entry.file)[1]


@entries_of("microsoft", "timm")
def test_timm_says_the_same_of_swins(name):
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
    if entry.source == "timm":  # Microsoft scored its own another way
        assert entry.resize_size == int(entry.image_size / config.crop_pct)
    assert config.num_classes == {"imagenet1k": 1000, "imagenet22k": 21841}[entry.trained_on[-1]]
    assert config.license == read_registry().sources[entry.source].licence.lower()
    assert f"window{entry.window_size}_{entry.image_size}" in entry.file


# ---- what a config names


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fetched(here):
    """Puts a file where the one of an entry would lie."""

    def put(name: str) -> Path:
        path = Path("saved_weights", entry_named(name).file)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    return put


@pytest.mark.parametrize(
    ("named", "trunk", "name"),
    [
        ("imagenet1k", "resnet50", "torchvision_resnet50_v1"),
        ("imagenet1k", "swin_t", "torchvision_swin_t"),
        ("imagenet22k", "swin_l", "microsoft_swin_l_224_22k"),
        ("timm_swin_b_384", "swin_b", "timm_swin_b_384"),
    ],
)
def test_a_data_set_means_the_default_of_the_trunk_and_a_name_its_entry(fetched, named, trunk, name):
    path = fetched(name)
    assert find_weights(named, trunk) == path


@pytest.mark.parametrize("named", ["imagenet1k", "torchvision_swin_t"])
def test_a_file_that_is_absent_is_told_with_the_command_and_the_way_by_hand(here, named):
    with pytest.raises(ValueError) as error:
        find_weights(named, "swin_t")
    assert str(error.value) == (
        f"saved_weights/swin_t-704ceda3.pth is not there, in {here}: `python -m weights fetch "
        "torchvision_swin_t`; for a machine without network, download "
        "https://download.pytorch.org/models/swin_t-704ceda3.pth elsewhere and copy it to "
        "saved_weights/swin_t-704ceda3.pth"
    )


def test_a_trunk_without_a_default_is_told_those_that_have_one(here):
    with pytest.raises(ValueError, match="no default of trunk 'swin_l', there are resnet50, swin_t, swin_s, swin_b;"):
        find_weights("imagenet1k", "swin_l")


def test_weights_of_another_trunk_are_refused_with_those_that_fit(fetched):
    fetched("torchvision_swin_s")
    with pytest.raises(ValueError, match="is a swin_s, expected a swin_t: torchvision_swin_t, microsoft_swin_t_224,"):
        find_weights("torchvision_swin_s", "swin_t")


def test_a_file_is_taken_as_it_is(here):
    Path("my.pth").touch()
    assert find_weights("my.pth", "swin_t") == Path("my.pth")


def test_an_experiment_means_its_newest_checkpoint(here):
    folder = Path("experiments/experiment_1/checkpoints")
    for name in ("step_000000009.pt", "step_000000010.pt", "best.pt"):
        save_checkpoint(folder / name, {})
    assert find_weights("experiments/experiment_1", "swin_t") == folder / "step_000000010.pt"


def test_an_experiment_without_checkpoints_is_named(here):
    Path("experiments/experiment_1").mkdir(parents=True)
    with pytest.raises(ValueError, match="experiments/experiment_1/checkpoints: no checkpoint"):
        find_weights("experiments/experiment_1", "swin_t")


def test_a_name_that_is_misspelled_meets_the_right_one(here):
    with pytest.raises(ValueError, match=r"no such file or experiment, nor a name .* did you mean 'imagenet1k'"):
        find_weights("imagnet1k", "swin_t")


def test_a_log_tells_the_file_and_the_beginning_of_its_digest(here):
    Path("a.pth").write_bytes(b"")
    assert identified(Path("a.pth")) == "a.pth (SHA-256 e3b0c442)"


# ---- what a file holds


@pytest.mark.parametrize("content", [ONE, {"model": ONE}, {"model": ONE, "epoch": 299}])
def test_a_public_checkpoint_is_read_bare_or_wrapped_as_microsofts(here, content):
    torch.save(content, "a.pth")
    assert torch.equal(read_weights(Path("a.pth"))["x"], ONE["x"])


def test_a_public_safetensors_file_is_read(here):
    safetensors.torch.save_file(ONE, "a.safetensors", metadata={"format": "pt"})
    assert torch.equal(read_weights(Path("a.safetensors"))["x"], ONE["x"])


def test_a_release_is_read(here):
    save_release(Path("a.safetensors"), ONE, {"step": "7"})
    assert torch.equal(read_weights(Path("a.safetensors"))["x"], ONE["x"])


def test_a_release_that_was_altered_is_refused(here):
    save_release(Path("a.safetensors"), ONE, {"step": "7"})
    content = bytearray(Path("a.safetensors").read_bytes())
    content[-1] ^= 1
    Path("a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: damaged"):
        read_weights(Path("a.safetensors"))


@pytest.mark.parametrize(
    ("ema", "average", "expected"),
    [({"weights": TWO}, True, TWO), ({"weights": TWO}, False, ONE), (None, True, ONE), (None, False, ONE)],
)
def test_a_run_gives_its_moving_average_or_the_raw_weights(here, ema, average, expected):
    save_checkpoint(Path("a.pt"), {"model": ONE, "ema": ema})
    assert torch.equal(read_weights(Path("a.pt"), average)["x"], expected["x"])


def test_a_checkpoint_without_a_model_is_named(here):
    save_checkpoint(Path("a.pt"), {"step": 7})
    with pytest.raises(ValueError, match=r"a\.pt: a checkpoint of this program, but without a model"):
        read_weights(Path("a.pt"))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"hello", b"error", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_checkpoint_is_named_with_the_cure(here, content):
    Path("a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth: expected plain data as torch.save wrote it; .* download it again"):
        read_weights(Path("a.pth"))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>"])
def test_a_file_that_is_no_safetensors_is_named_with_the_cure(here, content):
    Path("a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: truncated, or not a safetensors file .* again"):
        read_weights(Path("a.safetensors"))


def test_code_in_a_file_is_not_run(here):
    Path("a.pth").write_bytes(pickle.dumps(functools.partial(Path.touch, Path("ran")), protocol=2))
    with pytest.raises(ValueError, match="holds code"):
        read_weights(Path("a.pth"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([ONE], "holds a list, expected a dictionary"),
        ({"a": 1}, "'a' is no tensor"),
        ({1: 2}, "1 is no tensor"),
        ({1: ONE["x"]}, "1 is no tensor"),
    ],
)
def test_anything_but_tensors_by_name_is_refused(here, content, named):
    torch.save(content, "a.pth")
    with pytest.raises(ValueError, match=named):
        read_weights(Path("a.pth"))


def test_a_public_checkpoint_that_is_not_what_its_name_promises_is_refused(here):
    torch.save(ONE, "resnet18-deadbeef.pth")
    with pytest.raises(ValueError, match="damaged, its SHA-256 does not begin with what its name says"):
        read_weights(Path("resnet18-deadbeef.pth"))


WRAPPED = [
    (lambda weights: {"state_dict": weights, "epoch": 90}, "from its 'state_dict'"),
    (lambda weights: {"model": weights, "optimizer": {"state": {0: {"exp_avg": ONE["x"]}}}}, "from its 'model'"),
    (lambda weights: {"model_state_dict": weights, "model_ema": weights}, "from its 'model_state_dict'"),
    (lambda weights: {"net": weights, "step": torch.tensor(3).item()}, "from its 'net'"),
    (lambda weights: {"state_dict": weights, "best_acc1": torch.tensor(0.7)}, "from its 'state_dict'"),
    (lambda weights: {"model": {"state_dict": weights}}, "from its 'state_dict' in 'model'"),
]


@pytest.mark.parametrize(("wrap", "note"), WRAPPED)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder.trunk."])
@pytest.mark.parametrize("first", ["conv1.weight", "patch_embed.proj.weight", "features.0.0.weight"])
def test_weights_are_taken_out_of_what_wraps_them_and_a_note_says_so(here, wrap, note, prefix, first):
    weights = {first: torch.ones(2), "norm.weight": torch.zeros(2)}
    torch.save(wrap({prefix + name: value for name, value in weights.items()}), "a.pth")
    found, said = read_weights_with_note(Path("a.pth"))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert note in said
    assert (f"{prefix!r}" in said) == bool(prefix)


def test_a_prefix_in_a_safetensors_file_is_taken_off_too(here):
    safetensors.torch.save_file({"module.conv1.weight": torch.ones(2)}, "a.safetensors")
    weights, note = read_weights_with_note(Path("a.safetensors"))
    assert list(weights) == ["conv1.weight"]
    assert "'module.'" in note


@pytest.mark.parametrize(
    "names",
    [
        ["module.conv1.weight", "queue"],  # not of all
        ["features.1.weight", "features.2.weight"],  # leads to no model that is known
        ["conv1.weight", "conv1.bias"],
        ["x"],
    ],
)
def test_names_without_a_prefix_that_leads_to_a_known_model_stay(names):
    weights = {name: torch.ones(1) for name in names}
    assert without_prefix(weights) == (weights, "")


def test_of_several_models_none_is_taken_by_chance(here):
    torch.save({"student": ONE, "teacher": TWO}, "a.pth")
    with pytest.raises(ValueError, match="'student', 'teacher'; save the one that is meant"):
        read_weights(Path("a.pth"))


def test_a_checkpoint_of_a_run_that_lost_its_end_is_not_taken_for_a_public_one(here):
    save_checkpoint(Path("a.pt"), {"model": ONE, "ema": None, "scheduler": {}})
    Path("a.pt").write_bytes(Path("a.pt").read_bytes()[:-1])
    with pytest.raises(ValueError, match="lost its end"):
        read_weights(Path("a.pt"))


def described(content: dict) -> dict[str, str]:
    torch.save(content, "a.pth")
    return describe(Path("a.pth"))


def slim_swin(num_classes: int = 10) -> SwinTransformer:
    return SwinTransformer(**SWIN_VARIANTS["swin_slim"], num_classes=num_classes)


def test_a_swin_is_recognised_by_its_shapes(here):
    facts = described(slim_swin().state_dict())
    assert facts["family"] == "Swin Transformer, swin_slim"
    assert facts["classes"] == "10"
    assert "embed_dim 32, depths (2, 2, 6, 2), num_heads (1, 2, 4, 8), window_size 4" in facts["sizes"]
    assert facts["names"] == "Microsoft's, and this project's"


def test_torchvisions_names_are_recognised(here):
    peer = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [5, 5], num_classes=3)
    assert described(peer.state_dict())["names"] == "torchvision's"


def test_timms_names_are_recognised(here):
    timm = pytest.importorskip("timm")
    peer = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, pretrained=False)
    assert described(peer.state_dict())["names"] == "timm's"


@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-34", "ResNet-50"])
def test_a_resnet_is_recognised_by_its_depth(here, name):
    peer = torchvision.models.get_model(name.lower().replace("-", ""), num_classes=5)
    facts = described(peer.state_dict())
    assert (facts["family"], facts["classes"]) == (name, "5")


def test_what_is_unknown_is_said_to_be_with_its_parts(here):
    facts = described({"backbone.conv.weight": torch.zeros(1), "neck.conv.weight": torch.zeros(1)})
    assert facts["family"].startswith("unknown, with the parts backbone, neck: ")


def test_a_detector_is_recognised_by_its_heads(here):
    facts = described({"backbone.conv.weight": torch.zeros(1), "class_head.0.weight": torch.zeros(1)})
    assert facts["family"] == "detector of this project, with the parts backbone, class_head"


def test_numbers_are_counted(here):
    assert described(nn.Linear(2, 3).state_dict())["numbers"] == "9 in 2 tensors"


def test_an_entry_of_the_registry_is_recognised_by_its_digest_whatever_the_file_is_called(here, monkeypatch):
    torch.save(ONE, "renamed.pth")
    digest = module.file_sha256(Path("renamed.pth"))
    entry = entry_named("torchvision_swin_t").model_copy(update={"sha256": digest[:8]})
    monkeypatch.setattr(module, "read_registry", lambda: read_registry().model_copy(update={"weights": (entry,)}))
    assert describe(Path("renamed.pth"))["registry"] == "torchvision_swin_t"


def test_where_there_is_no_digest_the_name_alone_is_recognised(here):
    torch.save(ONE, "swin_tiny_patch4_window7_224.pth")
    found = describe(Path("swin_tiny_patch4_window7_224.pth"))["registry"]
    assert found == "microsoft_swin_t_224, by the file's name; its publisher states no checksum"


# ---- the command


@pytest.fixture
def command(here, run_in_process):
    """Runs `python -m weights ...`; returns its exit code, what it printed and its errors."""
    return functools.partial(run_in_process, weights)


@pytest.fixture
def published(here, monkeypatch):
    """Puts a registry of one entry, "tiny", in place of the real one, its file on a local server; gives the file."""
    path = here / "server/tiny.pth"
    path.parent.mkdir()
    torch.save(nn.Linear(2, 3).state_dict(), path)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=path.parent)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    entry = entry_named("microsoft_swin_t_224").model_copy(
        update={"name": "tiny", "file": "tiny.pth", "url": f"http://127.0.0.1:{server.server_port}/tiny.pth"}
    )
    registry = read_registry().model_copy(update={"weights": (entry,), "defaults": {}})
    monkeypatch.setattr(module, "read_registry", lambda: registry)
    yield path
    server.shutdown()
    server.server_close()
    thread.join()


def test_list_has_a_line_for_every_entry_and_says_what_is_here(command, fetched):
    fetched("torchvision_swin_t")
    code, out, _ = command("list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert lines.keys() == ENTRIES.keys() | {"name"}
    assert [name for name, line in lines.items() if line.endswith("yes")] == ["torchvision_swin_t"]


def test_fetch_puts_the_file_where_a_config_finds_it_and_says_what_it_is(command, published):
    code, out, _ = command("fetch", "tiny")
    assert code == 0
    assert Path("saved_weights/tiny.pth").read_bytes() == published.read_bytes()
    assert f"SHA-256:  {module.file_sha256(published)}" in out
    assert find_weights("tiny", "swin_t") == Path("saved_weights/tiny.pth")


def test_fetch_takes_another_folder(command, published):
    command("fetch", "tiny", "--to", "elsewhere/deep")
    assert Path("elsewhere/deep/tiny.pth").is_file()


def test_a_file_that_is_here_is_not_fetched_again(command, published):
    command("fetch", "tiny")
    published.unlink()
    assert command("fetch", "tiny")[0] == 0


def test_a_page_that_came_instead_of_weights_is_removed(command, published):
    published.write_text("<!DOCTYPE html> Log in")
    code, _, errors = command("fetch", "tiny")
    assert code == 2
    assert "tiny.pth: expected plain data as torch.save wrote it" in errors[-1]
    assert list(Path("saved_weights").iterdir()) == []


def test_fetch_of_an_unknown_name_suggests_one(command):
    code, _, errors = command("fetch", "torchvision_swin")
    assert code == 2
    assert "'torchvision_swin': no such name in registry.yaml; did you mean 'torchvision_swin_" in errors[-1]


def test_inspect_tells_a_run_by_its_experiment(command):
    model = slim_swin()
    state = {"step": 12, "model": model.state_dict(), "ema": {"weights": model.state_dict()}}
    save_checkpoint(Path("experiments/experiment_1/checkpoints/step_000000012.pt"), state)
    _, out, _ = command("inspect", "experiments/experiment_1")
    assert "checkpoint of a run of this project, step 12; raw weights and their moving average" in out
    assert "swin_slim" in out


def test_inspect_tells_a_release(command):
    save_release(Path("a.safetensors"), dict(slim_swin().state_dict()), {"step": "7", "classes": "[]"})
    assert "release of this project, step 7; its metadata hold classes, step" in command("inspect", "a.safetensors")[1]


def test_inspect_of_nothing_is_one_line(command):
    assert command("inspect", "gone.pth")[::2] == (2, ["error: gone.pth: no such file"])
