"""benchmarks/threads.py: one training process, as it starts them, and the table."""

import pytest

from benchmarks import threads
from detection.shapes import generate


@pytest.mark.slow
def test_a_process_trains_whenever_it_is_asked(tmp_path):
    generate(tmp_path, num_train=threads.BATCH_SIZE, num_val=1, image_size=threads.IMAGE_SIZE)
    with threads.Trainer(tmp_path, 1, threads.PASSIVE) as trainer, threads.busy_neighbour():
        assert trainer.answer() == "ready"
        assert threads.images_per_second([trainer], 0.01) > 0
        assert threads.images_per_second([trainer], 0.01) > 0
    assert trainer.process.returncode is not None


def test_a_process_that_cannot_train_is_reported(tmp_path):
    no_python = {"PYTHONHOME": str(tmp_path)}  # dies at once
    with threads.Trainer(tmp_path, 1, no_python) as trainer, pytest.raises(threads.RunError, match="exit code 1"):
        trainer.answer()


def test_every_way_is_compared_with_spinning_threads_under_the_same_conditions():
    rows = threads.rows_of(quiet=[40.0, 40.0, 30.0, 60.0], busy=[5.0, 20.0, 25.0, 40.0])
    assert [row.ratio for row in rows] == [1.0, 0.75, 1.5, 4.0, 5.0, 8.0]
    assert {row.what for row in rows if row.theirs == 5} == {
        "one run, two threads, passive, busy neighbour",
        "one run, one thread, busy neighbour",
        "two runs, one thread each, busy neighbour",
    }
