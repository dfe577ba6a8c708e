"""benchmarks/scaling.py: two processes, as it starts them, on a small cell."""

import pytest

from benchmarks import scaling
from detection.shapes import generate


@pytest.mark.slow
def test_two_processes_exchange_gradients_and_are_timed(tmp_path):
    size = scaling.ON_CPU
    generate(tmp_path, num_train=2 * size.batch_size, num_val=1, image_size=size.image_size)
    figures = scaling.start(2, tmp_path)  # fails where gradients are not exchanged
    assert figures.processes == 2
    assert min(figures.step, figures.step_alone, figures.all_reduce) > 0


def test_the_page_has_the_efficiency_and_what_the_exchange_moves():
    one = scaling.Figures(processes=1, step=0.05, step_alone=0.05, all_reduce=0.0, gradient_bytes=10**7)
    two = one._replace(processes=2, step=0.1, all_reduce=0.01)
    page = scaling.text([one, two], scaling.ON_CPU, on_gpu=False)
    assert "| 2 | 160 | 0.50 | 100 |" in page
    assert "| 10 | 1 |" in page  # ms, GB/s
    assert "gradients are 10 MB" in page


@pytest.mark.slow
def test_a_process_that_fails_fails_the_benchmark(tmp_path):
    with pytest.raises(scaling.RunError, match="instances_train"):
        scaling.start(1, tmp_path)


def test_numbers_of_processes_double_up_to_what_there_is():
    assert scaling.numbers_of_processes(1) == [1]
    assert scaling.numbers_of_processes(6) == [1, 2, 4]
    assert scaling.numbers_of_processes(8) == [1, 2, 4, 8]
