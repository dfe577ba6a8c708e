"""Runs that start at the same instant."""

import multiprocessing
from pathlib import Path

from records.experiment import new_experiment

STARTS, ROUNDS = 16, 20


def choose(folder: Path, barrier, chosen) -> None:
    """In each round, all at once: make the round's folder of experiments and choose a number in it."""
    for number in range(ROUNDS):
        barrier.wait(600)
        chosen.put((number, new_experiment(folder / str(number)).name))


def test_sixteen_starts_at_one_instant_get_sixteen_experiments_twenty_times(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, chosen = context.Barrier(STARTS), context.Queue()
    processes = [context.Process(target=choose, args=(tmp_path, barrier, chosen)) for _ in range(STARTS)]
    for process in processes:
        process.start()
    found = sorted(chosen.get(timeout=600) for _ in range(STARTS * ROUNDS))
    for process in processes:
        process.join(600)
    numbers = range(1, STARTS + 1)
    assert found == sorted((number, f"experiment_{n}") for number in range(ROUNDS) for n in numbers)
