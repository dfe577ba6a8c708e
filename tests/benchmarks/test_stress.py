"""benchmarks/stress.py: two kills of a run of two processes, of the fifty that `make stress` does."""

import random

import pytest

from benchmarks import stress
from detection.shapes import generate
from engine.checkpoint import save_checkpoint


@pytest.mark.slow
def test_a_run_killed_at_random_ends_where_an_undisturbed_one_ends(tmp_path):
    generate(tmp_path / "sample", num_train=24, num_val=6, image_size=96)
    (tmp_path / "config.yaml").write_text(stress.CONFIG.format(root=tmp_path / "sample"))
    name = "2 processes, 2 loader workers each, moving average"
    result = stress.stress(name, kills=2, chance=random.Random(3), folder=tmp_path / "runs")
    assert result.kills.total() == 2
    assert result.identical == result.runs >= 1


def test_the_digest_sees_a_single_number(tmp_path):
    digests = set()
    for best in (0.5, 0.5000001):
        for seconds in (1.0, 2.0):  # which say nothing
            experiment = tmp_path / f"{best}_{seconds}"
            save_checkpoint(experiment / "checkpoints/step_000000003.pt", {"best": best, "epoch_seconds": seconds})
            (experiment / "detections.json").write_text("[]")
            digests.add(stress.digest(experiment))
    assert len(digests) == 2
