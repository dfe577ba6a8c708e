"""engine/doctor.py: what it finds, what it advises, and how it ends."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from classification.task import ClassificationConfig
from detection.task import DetectionConfig
from diffusion.task import DiffusionConfig
from engine import doctor
from engine.config import load_config, read_overridden
from engine.doctor import Finding, check_config, dry_run, task_of

ROOT = Path(__file__).parent.parent.parent
CONFIG_CLASSES = {
    "detection.training": DetectionConfig,
    "diffusion.training": DiffusionConfig,
    "train_clf_imagenet": ClassificationConfig,
}
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if not path.name.startswith("grid_"))


@pytest.fixture
def command(run_in_process):
    """Run `python -m engine.doctor ...`; returns its exit code and what it printed."""

    def run(*words):
        return run_in_process(doctor, *words)[:2]

    return run


@pytest.fixture
def only(monkeypatch):
    """Replaces all checks of the machine by one that finds these."""

    def replace(*findings):
        monkeypatch.setattr(doctor, "CHECKS", {"disk": lambda: iter(findings)})

    return replace


@pytest.fixture
def config(sample_root, tmp_path, monkeypatch) -> Path:
    """A config of the sample set, in an empty folder; commands start there, with the project's modules."""
    splits = {s: {"images": f"images/{s}", "annotations": f"annotations/instances_{s}.json"} for s in ("train", "val")}
    content = {
        "data": {"root": str(sample_root), "workers": 0, **splits},
        "model": {"backbone": "ResNet18SlimBackbone_B", "neck": "none", "input_size": 96},
        "train": {"epochs": 1, "batch_size": 4},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", os.environ["PYTHON_EXEC"])  # of the runs that the doctor tries
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return path


def only_finding(findings) -> Finding:
    (found,) = findings
    return found


# ---- the report --------------------------------------------------------------------------------------------


def test_where_the_tests_run_nothing_of_the_installation_fails(capsys):
    for name in ("code", "python", "packages", "torch", "devices", "processes", "cores"):
        levels = [finding.level for finding in doctor.told(name, doctor.CHECKS[name])]
        assert levels, name
        assert "fail" not in levels, capsys.readouterr().out


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_code_is_1_if_anything_failed(command, only, level, code):
    only(Finding(level, "20 GiB free"))
    assert command()[0] == code


def test_a_remedy_stands_below_its_line(command, only):
    only(Finding("warn", "1 GiB free", "make room"))
    first, second, *_ = command()[1].splitlines()
    assert first == "warn  disk          1 GiB free"
    assert second.split() == ["->", "make", "room"]


def test_the_last_line_counts(command, only):
    only(Finding("ok", ""), Finding("warn", ""), Finding("warn", ""), Finding("fail", ""))
    assert command()[1].splitlines()[-1] == "1 failed, 2 warnings, 1 ok"


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(command, monkeypatch):
    def broken():
        raise ImportError("libcudart.so.13: cannot open shared object file\nmore")
        yield

    monkeypatch.setattr(doctor, "CHECKS", {"torch": broken, "disk": lambda: iter([Finding("ok", "free")])})
    code, printed = command()
    assert code == 1
    assert "fail  torch         ImportError: libcudart.so.13: cannot open shared object file\n" in printed
    assert "ok    disk          free" in printed


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (ImportError("libcudart.so.13: cannot open shared object file"), "install again"),
        (OSError("libcudart.so.13: cannot open shared object file"), "install again"),
        (PermissionError(13, "Permission denied"), "report it"),
        (RuntimeError("CUDA error: out of memory"), "report it"),
    ],
)
def test_only_libraries_that_do_not_load_are_to_be_installed_again(error, cure):
    def broken():
        raise error
        yield

    assert cure in only_finding(doctor.told("torch", broken)).remedy


def test_a_python_that_is_too_old_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    found = only_finding(doctor.check_python())
    assert (found.level, found.what.endswith("expected 3.11 or newer")) == ("fail", True)
    assert "python3.12 -m venv" in found.remedy


def test_an_older_python_can_start_it():
    """All that is imported before a check runs is known to Python 3.9, by its grammar and its modules."""
    program = "import sys; sys.modules['tomllib'] = None; import engine.doctor; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    own = [ROOT / f"{name.replace('.', '/')}.py" for name in done.stdout.split() if name.startswith("engine.")]
    for path in filter(Path.is_file, own):
        ast.parse(path.read_text(), feature_version=(3, 9))


# ---- the machine -------------------------------------------------------------------------------------------


def test_a_torchvision_made_for_another_torch_fails(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy", "torch==1.13.0"])
    found = only_finding(doctor.check_torch())
    assert found.level == "fail"
    assert "expected ==1.13.0" in found.what
    assert "at once" in found.remedy


def test_operators_that_do_not_load_fail(monkeypatch):
    import torchvision

    def nms(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    found = only_finding(doctor.check_torch())
    assert (found.level, "torchvision::nms does not exist" in found.what) == ("fail", True)


def test_a_gpu_that_does_not_work_fails_and_the_others_are_looked_at(monkeypatch):
    import torch

    def memory(device):
        if device.index == 0:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore")
        raise RuntimeError("CUDA error: busy")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    broken, busy = doctor.check_devices()
    assert broken[:2] == ("fail", "cuda:0 cannot be used: CUDA error: uncorrectable ECC error encountered")
    assert busy[:2] == ("fail", "cuda:1 cannot be used: CUDA error: busy")
    assert "nvidia-smi" in broken.remedy


@pytest.mark.parametrize(
    ("need", "found"),
    [("numpy>=1.26", ""), ("numpy<1", "expected <1"), ("no-such-package>=2", "no-such-package is not installed")],
)
def test_a_requirement_is_met_or_said_to_be_unmet(need, found):
    assert found in doctor.unmet(need)
    assert bool(found) == bool(doctor.unmet(need))


@pytest.mark.parametrize(
    ("check", "cure"), [(doctor.check_shared_memory, "--shm-size"), (doctor.check_disk, "make room")]
)
def test_little_room_is_warned_of_with_the_cure(monkeypatch, check, cure):
    if check is doctor.check_shared_memory and not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**26, total=2**26))
    found = only_finding(check())
    assert found.level == "warn"
    assert cure in found.remedy


def test_more_threads_than_a_quota_allows_are_warned_of(monkeypatch):
    monkeypatch.setattr(doctor, "usable_cores", lambda: 0.5)
    found = only_finding(doctor.check_cores())
    assert found == ("warn", found.what, "unset OMP_NUM_THREADS, or export OMP_NUM_THREADS=1")


def test_little_memory_is_warned_of(monkeypatch):
    monkeypatch.setattr(doctor, "memory_limit", lambda: 2**30)
    assert only_finding(doctor.check_memory()).level == "warn"


def test_slurm_that_does_not_answer_is_warned_of(monkeypatch, tmp_path):
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'sinfo: error: no controller' >&2\nexit 1\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = only_finding(doctor.check_slurm())
    assert (found.level, "no controller" in found.what) == ("warn", True)


def test_slurm_that_answers_is_told_by_its_partitions(monkeypatch, tmp_path):
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'gpu* (up, 4 nodes)'\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert only_finding(doctor.check_slurm()) == ("ok", "this is job 12; partitions gpu* (up, 4 nodes)", "")


def test_a_partition_that_slurm_does_not_have_fails(monkeypatch, tmp_path):
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'main* (up, 4 nodes)'\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_PARTITION", "gpu,main")
    found = only_finding(doctor.check_slurm())
    assert found[:2] == ("fail", "SBATCH_PARTITION is gpu, expected some of main")


# ---- a config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_task_of_a_config_is_the_one_that_can_read_it(path):
    assert load_config(path, (), CONFIG_CLASSES[task_of(read_overridden(path, ()))])


def test_a_detectors_config_with_a_typo_is_still_a_detectors():
    assert (
        task_of({"data": {"root": ".", "trane": {}}, "model": {"backbone": "SwinTBackbone_B"}}) == "detection.training"
    )


def test_a_grid_is_refused_with_the_configs_in_it():
    found = only_finding(check_config(str(ROOT / "configs/grid_swin_ablation.yaml"), ()))
    assert found.level == "fail"
    assert found.remedy == "name one of its configs: configs/swin_slim_cifar10.yaml"


def test_a_config_of_no_task_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("train: {epochs: 1}\n")
    assert "a config of no task" in only_finding(check_config(str(tmp_path / "x.yaml"), ())).what


def test_a_config_that_is_not_there_fails_in_one_line(tmp_path):
    found = only_finding(check_config(str(tmp_path / "x.yaml"), ()))
    assert (found.level, "no such file" in found.what) == ("fail", True)


def test_a_config_that_can_be_trained_is_told_with_its_data_and_its_memory(command, only, config):
    only()
    code, printed = command(
        config, "optim.schedule=cosine", "optim.warmup_epochs=0", "model.input_size=128"
    )  # nothing to warn of
    assert code == 0
    assert "12 images" in printed
    assert "training objects have one with IoU >= 0.5" in printed
    assert "category ids 1 to 18" in printed
    assert "ok    config        dry run: a step takes" in printed
    assert not (config.parent / "experiments").exists()


def test_the_command_it_starts_can_be_pasted(command, only, config):
    only()
    (config.parent / "my config.yaml").write_text("model: {backbone: ResNet18SlimBackbone_B}\n")
    _, printed = command("my config.yaml", "train.trackers=[tensorboard,wandb]")
    assert "python -m detection.training 'my config.yaml' 'train.trackers=[tensorboard,wandb]' --dry-run:" in printed


def test_data_that_are_not_there_fail_with_what_the_task_says_of_them(command, only, config):
    only()
    code, printed = command(config, "data.root=/nowhere")
    assert code == 1
    assert "fail  config        /nowhere/annotations/instances_train.json: cannot be read" in printed
    assert "Traceback" not in printed


def test_a_dry_run_that_takes_nearly_all_of_the_memory_is_a_warning():
    found = dry_run([sys.executable, "-c", "print('images'); print('memory 9,500 of 10,000 MiB')"])
    assert found.level == "warn"
    assert "train.batch_size" in found.remedy


@pytest.mark.parametrize(("warnings", "level"), [(0, "ok"), (2, "warn")])
def test_a_dry_run_that_warned_is_a_warning(warnings, level):
    found = dry_run([sys.executable, "-c", f"print('memory 1 of 10,000 MiB; warnings: {warnings}')"])
    assert found.level == level


def test_a_dry_run_that_does_not_tell_its_memory_is_a_warning():
    found = dry_run([sys.executable, "-c", "print('done')"])
    assert (found.level, "'done' does not say the memory" in found.what) == ("warn", True)


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        ("train.batch_size 8 does not fit the memory: lower it (error: 12)", "train.accumulation_steps"),
        ("model.weights 'a.pth': no such file", "weights.__main__ list"),
        ("a.yaml: 2 problems\n  line 3, model.neck: neck 'fnp': expected one of none", "mend the config"),
        ("train.trackers: wandb is not installed", "pip install"),
        ("/nowhere/a.json: cannot be read: No such file; is data.root the folder?", "docs/data.md"),
        ("batch_size 64: 1 x 64 images make one batch, but there are only 12; lower it", "lower train.batch_size"),
        ("CUDA error: no kernel image is available for execution on the device", "`devices` above"),
        ("a bug: KeyError: 'class'", "report it"),
        ("nothing known", "docs/faults.md"),
    ],
)
def test_an_error_of_a_dry_run_is_told_whole_with_a_remedy_of_its_kind(error, cure):
    program = f"import sys; sys.stderr.write('error: no matter\\nerror on rank 1: ' + {error!r} + '\\n'); sys.exit(2)"
    found = dry_run([sys.executable, "-c", program])
    assert found.what == error
    assert cure in found.remedy


def test_a_dry_run_that_lacks_a_module_is_told_by_its_last_line():
    found = dry_run([sys.executable, "-c", "import no_such_module"])
    assert found.what == "ModuleNotFoundError: No module named 'no_such_module'"
    assert "install again" in found.remedy


@pytest.mark.parametrize(("name", "cure"), [("SIGKILL", "out of memory"), ("SIGBUS", "shared memory")])
def test_a_dry_run_that_is_killed_fails_with_the_likely_reason(name, cure):
    found = dry_run([sys.executable, "-c", f"import os, signal; os.kill(os.getpid(), signal.{name})"])
    assert (found.level, name in found.what) == ("fail", True)
    assert cure in found.remedy


def test_a_dry_run_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(doctor, "DRY_RUN_SECONDS", 1)
    found = dry_run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert (found.level, "did not end in 1 s" in found.what) == ("fail", True)
