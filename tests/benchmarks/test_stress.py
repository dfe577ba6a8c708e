"""benchmarks/stress.py with two kills of a run of two processes (`make stress` has fifty kills)."""

import random

import pytest

from benchmarks import stress
from detection.shapes import generate
from engine.checkpoint import save_checkpoint


@pytest.mark.slow
def test_a_run_killed_at_random_is_bit_identical_to_an_undisturbed_one(tmp_path):
    generate(tmp_path / "sample", num_train=24, num_val=6, image_size=96)
    (tmp_path / "config.yaml").write_text(stress.CONFIG.format(root=tmp_path / "sample"))
    name = "2 processes, 2 loader workers each, moving average"
    result = stress.stress(name, kills=2, rng=random.Random(3), folder=tmp_path / "runs")
    assert result.kills.total() == 2
    assert result.identical == result.runs >= 1


def test_the_digest_depends_on_every_number_but_not_on_times(tmp_path):
    digests = set()
    for best in (0.5, 0.5000001):
        for seconds in (1.0, 2.0):
            experiment = tmp_path / f"{best}_{seconds}"
            save_checkpoint(experiment / "checkpoints/step_000000003.pt", {"best": best, "epoch_seconds": seconds})
            (experiment / "detections.json").write_text("[]")
            digests.add(stress.digest(experiment))
    assert len(digests) == 2
