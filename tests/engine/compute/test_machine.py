"""engine/compute/machine.py: the lowest limit counts, in both versions of control groups (cgroups)."""

import os

import pytest

from engine.compute import machine

MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Return a function that fakes control groups: the content of /proc/self/cgroup, and files of the groups."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)

    def make(own: str, **files: str) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    return make


def test_a_quota_limits_the_usable_cores(cgroups):
    cgroups("0::/job\n", **{"job/cpu.max": "150000 100000"})
    assert machine.usable_cores() == 1.5
    assert machine.memory_limit() == MEMORY


def test_a_limit_of_a_parent_group_counts(cgroups):
    cgroups("0::/user/job\n", **{"user/job/memory.max": "max", "user/memory.max": "1000", "memory.max": "2000"})
    assert machine.memory_limit() == 1000


def test_limits_of_version_1_are_read_from_a_folder_per_controller(cgroups):
    files = {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"}
    cgroups("3:memory:/job\n2:cpu:/job\n", **files, **{"memory/job/memory.limit_in_bytes": "3000"})
    assert machine.usable_cores() == 2
    assert machine.memory_limit() == 3000
    cgroups("2:cpu:/\n", **{"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})  # no quota
    assert machine.usable_cores() == 4


@pytest.mark.parametrize(
    ("variable", "count", "expected"),
    [(None, 2, ["0", "1"]), ("2,3", 2, ["2", "3"]), ("GPU-a,-1,GPU-b", 1, ["GPU-a"]), ("", 0, []), (None, 0, [])],
)
def test_visible_gpus_have_their_names_in_cuda_visible_devices(monkeypatch, variable, count, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert machine.visible_gpus() == expected
