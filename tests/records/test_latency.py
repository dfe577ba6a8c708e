"""records/latency.py: latency.json is written, read, and checked."""

import json

import pytest

from records.latency import LATENCY_FILE, Latency, Percentiles, Timing, read_latency, write_latency


@pytest.fixture
def record() -> Latency:
    times = Percentiles(p50=2.0, p50_low=1.9, p50_high=2.1, p95=3.0, p99=4.0)
    parts = dict.fromkeys(("network", "postprocess", "end_to_end"), times)
    timings = [
        Timing(program=program, batch_size=size, images_per_second=500.0, rounds_ms=[2.0], **parts)
        for program, size in (("eager", 1), ("eager", 8), ("compiled", 1))
    ]
    return Latency(
        session="ab", measured="2026-11-30T10:00:00", device="cpu", threads=2, precision="fp32", versions={},
        checkpoint="step_3.pt", step=3, images=12, annotations_sha256="a1", timings=timings,
    )  # fmt: skip


def test_a_record_is_read_as_it_was_written(tmp_path, record):
    assert read_latency(tmp_path) is None
    write_latency(tmp_path, record)
    assert read_latency(tmp_path) == record


def test_a_timing_is_found_by_program_and_batch_size(record):
    assert record.timing("eager", 8) is record.timings[1]
    assert record.timing("compiled", 8) is None


@pytest.mark.parametrize(
    "change", [lambda content: content.pop("step"), lambda content: content["timings"][0].update(program="tensorrt")]
)
def test_an_invalid_record_is_an_error_of_one_line_with_the_cure(tmp_path, record, change):
    content = record.model_dump()
    change(content)
    (tmp_path / LATENCY_FILE).write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"latency\.json: corrupt.*(step|program).*python -m detection\.latency"
    ) as error:
        read_latency(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00"])
def test_a_file_that_is_not_json_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / LATENCY_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"latency\.json: corrupt"):
        read_latency(tmp_path)
