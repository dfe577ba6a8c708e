"""detection/deployment/timing.py: programs take turns, and the batch is as large as pays."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from detection.deployment import timing
from detection.deployment.programs import Times


def steps_of(milliseconds: dict[str, float], calls: list[str]) -> dict:
    """Return programs that record their names and claim to take these times."""

    def step(name, _):
        calls.append(name)
        return Times(milliseconds[name], 0.0, milliseconds[name])

    return {name: partial(step, name) for name in milliseconds}


def test_every_program_runs_once_in_every_round_in_random_order():
    calls = []
    steps = steps_of({"a": 1.0, "b": 1.0, "c": 1.0}, calls)
    stream = iter(lambda: [], None)
    times = timing.take_turns(steps, [("b", "a")], stream, 200, np.random.default_rng(0), timing.Load())
    rounds = [tuple(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) == 6  # all orders occur
    assert {len(series) for series in times.values()} == {len(rounds)}


def test_programs_are_warmed_up_in_turns_and_the_time_of_a_round_is_returned():
    calls = []
    steps = steps_of({"a": 1000.0, "b": 2000.0}, calls)
    assert timing.warm_up(steps, iter(lambda: [], None), np.random.default_rng(0)) == 3
    rounds = {tuple(calls[start : start + 2]) for start in range(0, len(calls), 2)}
    assert (len(calls), rounds) == (2 * timing.WARM_UP, {("a", "b"), ("b", "a")})


def test_rounds_are_added_until_the_ratio_is_precise_and_no_longer():
    generator = np.random.default_rng(0)

    def rounds(spread: float) -> int:
        steps = {name: lambda _: Times(1.0, 0.0, float(np.exp(generator.normal(0, spread)))) for name in ("a", "b")}
        stream = iter(lambda: [], None)
        found = timing.take_turns(steps, [("b", "a")], stream, 50, np.random.default_rng(0), timing.Load())
        return len(found["a"])

    assert rounds(0.001) == 50
    assert 50 < rounds(0.05) < 500
    assert rounds(10) == 50 * timing.MOST_BLOCKS


def test_the_batch_is_doubled_as_long_as_it_pays():
    per_image = {1: 10.0, 2: 8.0, 4: 7.0, 8: 6.9}

    def step(batch):
        return Times(0.0, 0.0, per_image.get(len(batch), 6.9) * len(batch))

    assert timing.largest_batch([step], [Path("a")], torch.device("cpu")) == 4


def test_a_batch_of_one_is_measured_even_if_memory_is_short(monkeypatch):
    def largest_batch(memory_bytes: int) -> int:
        monkeypatch.setattr(timing, "memory_limit", lambda: memory_bytes)
        return timing.largest_batch([lambda batch: Times(0.0, 0.0, 10.0)], [Path("a")], torch.device("cpu"))

    assert largest_batch(1) == 1
    assert largest_batch(2**60) == timing.LARGEST_BATCH


def test_a_warning_says_how_precise_the_ratios_are_if_that_is_not_enough(caplog):
    generator = np.random.default_rng(0)
    steps = {name: lambda _: Times(1.0, 0.0, float(np.exp(generator.normal(0, 0.3)))) for name in ("a", "b")}
    timing.take_turns(steps, [("b", "a")], iter(lambda: [], None), 20, generator, timing.Load(), most_blocks=2)
    assert "after 40 rounds" in caplog.text
    assert "--runs" in caplog.text
