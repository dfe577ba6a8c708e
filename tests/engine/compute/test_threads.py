"""engine/compute/threads.py: OpenMP settings, unless the user has set them."""

import os

import pytest

from engine.compute.threads import fit_threads, thread_count


@pytest.mark.parametrize(
    ("environ", "usable", "expected"),
    [
        ({}, 8, None),  # all cores: the library chooses
        ({}, 2.5, 2),
        ({}, 0.5, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 8, 2),
        ({"LOCAL_WORLD_SIZE": "16"}, 8, 1),
        ({"SLURM_CPUS_PER_TASK": "4", "LOCAL_WORLD_SIZE": "2"}, 8, 4),  # each rank is a task
        ({"OMP_NUM_THREADS": "7", "LOCAL_WORLD_SIZE": "4"}, 2, None),
    ],
)
def test_ranks_share_the_usable_cores_unless_the_user_has_set_the_number_of_threads(environ, usable, expected):
    assert thread_count(environ, usable, allowed=8) == expected


@pytest.mark.parametrize(
    ("user", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, None)]
)
def test_threads_wait_passively_unless_the_user_has_set_a_policy(monkeypatch, user, policy):
    monkeypatch.setattr("os.environ", {"OMP_NUM_THREADS": "1"} | user)
    fit_threads()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
