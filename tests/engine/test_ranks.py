"""engine/ranks.py: torchrun's variables for the processes of a Slurm job."""

import os

import pytest

from engine.ranks import first_host, read_slurm_step

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STEP = {  # environment of task 3 of `srun --nodes=2 --ntasks=4`
    "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
}  # fmt: skip
BATCH = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.fixture
def ranks_in(monkeypatch):
    """Return a function that runs `read_slurm_step` in an environment and returns torchrun's variables."""

    def read(environment: dict[str, str]) -> dict[str, str]:
        cleared = {key: value for key, value in os.environ.items() if key not in TORCHRUN and "SLURM" not in key}
        monkeypatch.setattr("os.environ", cleared | environment)
        read_slurm_step()
        return {name: os.environ[name] for name in TORCHRUN if name in os.environ}

    return read


def test_a_task_of_a_slurm_step_is_a_rank(ranks_in):
    assert ranks_in(STEP) == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "10121",
    }  # fmt: skip


def test_a_task_that_sees_only_its_own_gpu_uses_gpu_0_and_an_existing_address_is_kept(ranks_in):
    address = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}
    variables = ranks_in(STEP | address | {"SLURM_GPUS_PER_TASK": "1"})
    assert (address | {"LOCAL_RANK": "0"}).items() <= variables.items()


@pytest.mark.parametrize(
    "environment",
    [{}, BATCH, BATCH | STEP | {"SLURM_STEP_NUM_TASKS": "1"}, STEP | {"SLURM_PTY_PORT": "40000"}],
    ids=["no Slurm", "batch script", "srun of one task", "srun --pty"],
)
def test_all_other_processes_are_not_ranks(ranks_in, environment):
    assert ranks_in(environment) == {}


def test_variables_of_torchrun_are_kept(ranks_in):
    assert ranks_in(STEP | {"RANK": "0"}) == {"RANK": "0"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("login", "login"), ("a1,b2", "a1"), ("gpu[07-08,11],login", "gpu07"), ("x-[3]", "x-3"), ("r[1-2]n[0-3]", "r1n0")],
)
def test_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first
