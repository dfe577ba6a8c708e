"""engine/doctor.py: what it finds, what it advises, and how it ends."""

from types import SimpleNamespace

import pytest
import torch
import torchvision

from engine import doctor


def levels(findings):
    return [level for level, _, _ in findings]


def test_where_the_tests_run_nothing_fails_and_all_versions_are_printed(run_in_process):
    code, printed, _ = run_in_process(doctor)
    assert code == 0
    assert torch.__version__ in printed
    assert "\nok    cpu: " in printed


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_code_is_1_if_anything_failed(run_in_process, monkeypatch, level, code):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([(level, "1 GiB free", "make room"), ("ok", "", "")]),))
    found, printed, _ = run_in_process(doctor)
    assert found == code
    assert ("-> make room" in printed) == (level != "ok")


def test_a_check_that_breaks_is_a_failure_and_the_others_run(run_in_process, monkeypatch):
    def broken():
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "CHECKS", (broken, lambda: iter([("ok", "free", "")])))
    code, printed, _ = run_in_process(doctor)
    assert code == 1
    assert "fail  broken: OSError: libcudart.so.13" in printed
    assert "ok    free" in printed


def test_a_torchvision_whose_operators_do_not_load_fails(monkeypatch):
    def nms(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    level, what, cure = next(doctor.check_devices())
    assert level == "fail"
    assert "torchvision::nms does not exist" in what
    assert "of one release" in cure


def test_every_gpu_that_does_not_work_fails(monkeypatch):
    class Device:  # of a machine without GPUs
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


def test_gpus_that_torch_does_not_see_are_a_warning(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    level, _, cure = list(doctor.check_devices())[-1]
    assert level == "warn"
    assert "CUDA_VISIBLE_DEVICES" in cure


def test_little_room_is_a_warning_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**26))
    monkeypatch.setattr(doctor, "memory_limit", lambda: 2**30)
    findings = list(doctor.check_room())
    assert set(levels(findings)) == {"warn"}
    assert "--mem" in findings[0][2]
    assert "make room" in findings[-1][2]


def test_a_folder_without_locks_fails(monkeypatch):
    def lockf(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    failed = [what for level, what, _ in doctor.check_room() if level == "fail"]
    assert len(failed) == 1
    assert "No locks available" in failed[0]


def test_more_threads_than_a_quota_allows_are_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "usable_cores", lambda: 0.5)
    [(level, _, cure)] = doctor.check_cores()
    assert (level, "export OMP_NUM_THREADS=1" in cure) == ("warn", True)
