"""engine/doctor.py: findings, cures and exit codes."""

from types import SimpleNamespace

import torch

from engine import doctor


def levels(findings):
    return [level for level, _, _ in findings]


def test_no_check_fails_on_this_machine_and_versions_are_printed(run_in_process):
    code, printed, _ = run_in_process(doctor)
    assert code == 0
    assert torch.__version__ in printed
    assert "\nok    cpu: " in printed


def test_a_check_that_raises_has_failed_and_the_other_checks_run(run_in_process, monkeypatch):
    def broken():
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "CHECKS", (broken, lambda: iter([("warn", "1 GiB free", "make room")])))
    code, printed, _ = run_in_process(doctor)
    assert code == 1
    assert "fail  broken: OSError: libcudart.so.13" in printed
    assert "warn  1 GiB free\n      -> make room" in printed


def test_every_gpu_that_does_not_work_fails(monkeypatch):
    class Device:  # torch.device without GPUs
        def __init__(self, kind, index=None):
            self.type, self.index = kind, index

        def __str__(self):
            return f"{self.type}:{self.index}"

    def eye(*_, **__):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore")

    monkeypatch.setattr(torch, "device", Device)
    monkeypatch.setattr(torch, "eye", eye)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    _, *gpus = doctor.check_devices()
    assert levels(gpus[:2]) == ["fail", "fail"]
    assert [what.partition(": ")[0] for _, what, _ in gpus[:2]] == ["cuda:0", "cuda:1"]
    assert "ECC" in gpus[0][1]


def test_gpus_that_torch_cannot_use_are_a_warning(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    level, _, cure = list(doctor.check_devices())[-1]
    assert level == "warn"
    assert "CUDA_VISIBLE_DEVICES" in cure


def test_little_memory_or_disk_space_is_a_warning_with_a_cure(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**26))
    monkeypatch.setattr(doctor, "memory_limit", lambda: 2**30)
    findings = list(doctor.check_memory_and_disk())
    assert set(levels(findings)) == {"warn"}
    assert "--mem" in findings[0][2]
    assert "free some space" in findings[-1][2]


def test_a_file_system_without_locks_is_a_failure(monkeypatch):
    def lockf(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    failed = [what for level, what, _ in doctor.check_memory_and_disk() if level == "fail"]
    assert len(failed) == 1
    assert "No locks available" in failed[0]
