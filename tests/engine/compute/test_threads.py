"""engine/compute/threads.py: what commands set for OpenMP, and what they leave to the user."""

import pytest
import torch
from torch.utils.data import DataLoader

from engine.compute.threads import CHOSEN_THREADS, THREADS, thread_settings

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}


def chosen(number: int) -> dict[str, str]:
    return {THREADS: str(number), CHOSEN_THREADS: str(number)}


@pytest.mark.parametrize(
    ("environ", "usable", "expected"),
    [
        ({}, 8, PASSIVE),  # of all cores the library makes the best
        ({}, 2.5, PASSIVE | chosen(2)),
        ({}, 0.5, PASSIVE | chosen(1)),
        ({"LOCAL_WORLD_SIZE": "4"}, 8, PASSIVE | chosen(2)),
        ({"LOCAL_WORLD_SIZE": "16"}, 8, PASSIVE | chosen(1)),
        ({"SLURM_CPUS_PER_TASK": "3"}, 8, PASSIVE | chosen(3)),
        ({"SLURM_CPUS_PER_TASK": "4", "LOCAL_WORLD_SIZE": "2"}, 8, PASSIVE | chosen(4)),  # each rank is a task
        ({THREADS: "7"}, 2, PASSIVE),
        ({THREADS: "7", "LOCAL_WORLD_SIZE": "4"}, 2, PASSIVE),
        (chosen(7), 2, PASSIVE | chosen(2)),  # by the command that started this one
        ({"OMP_WAIT_POLICY": "active"}, 8, {}),
        ({"GOMP_SPINCOUNT": "1000"}, 8, {}),
    ],
)  # fmt: skip
def test_threads_share_the_cores_and_wait_passively_unless_the_user_has_set_otherwise(environ, usable, expected):
    assert thread_settings(environ, usable, allowed=8) == expected


class Threads:
    """A data set of the number of threads of the process that reads it."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return torch.get_num_threads()


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_loader_processes_have_one_thread():
    assert [int(count) for count in DataLoader(Threads(), num_workers=1, batch_size=None)] == [1, 1]
