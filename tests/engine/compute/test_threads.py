"""engine/compute/threads.py: what commands set for OpenMP, and what they leave to the user."""

import os

import pytest

from engine.compute.threads import fit_threads, thread_count


@pytest.mark.parametrize(
    ("environ", "usable", "expected"),
    [
        ({}, 8, None),  # of all cores the library makes the best
        ({}, 2.5, 2),
        ({}, 0.5, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 8, 2),
        ({"LOCAL_WORLD_SIZE": "16"}, 8, 1),
        ({"SLURM_CPUS_PER_TASK": "4", "LOCAL_WORLD_SIZE": "2"}, 8, 4),  # each rank is a task
        ({"OMP_NUM_THREADS": "7", "LOCAL_WORLD_SIZE": "4"}, 2, None),
    ],
)
def test_threads_share_the_cores_unless_the_user_has_set_their_number(environ, usable, expected):
    assert thread_count(environ, usable, allowed=8) == expected


@pytest.mark.parametrize(
    ("user", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, None)]
)
def test_threads_wait_passively_unless_the_user_has_set_otherwise(monkeypatch, user, policy):
    monkeypatch.setattr("os.environ", {"OMP_NUM_THREADS": "1"} | user)
    fit_threads()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
