"""records/robustness.py: means of complete records, what differs between records, and files that cannot be read."""

import json

import pytest

from records.robustness import (
    CORRUPTIONS_FILE,
    NUM_CORRUPTIONS,
    Robustness,
    command_for,
    read_robustness,
    write_robustness,
)


def new_record(**changes):
    """Return a record of two corruptions at two severities, without scores."""
    facts = {"metric": "mAP", "corruptions": ["fog", "snow"], "severities": [1, 5], "checkpoint": "step_3.pt"}
    facts |= {"step": 3, "precision": "fp32", "protocol": {"nms_iou": 0.45}, "versions": {"numpy": "2"}}
    return Robustness(**facts | changes)


def complete_record(clean=0.5):
    record = new_record().with_scores({"mAP": clean})
    for (name, severity), score in zip(record.evaluations, (0.4, 0.3, 0.2, 0.1), strict=True):
        record = record.with_scores({"mAP": score}, name, severity)
    return record


def test_a_written_record_is_read_back(tmp_path):
    write_robustness(tmp_path, complete_record())
    assert read_robustness(tmp_path) == complete_record()


def test_without_a_file_there_is_no_record(tmp_path):
    assert read_robustness(tmp_path) is None


def test_means_are_over_all_corruptions_and_severities_of_a_complete_record():
    record = complete_record()
    assert (record.mPC, record.rPC) == (pytest.approx(0.25), pytest.approx(0.5))
    assert (record.mean_of("fog"), record.mean_of("snow")) == (pytest.approx(0.35), pytest.approx(0.15))


def test_an_incomplete_record_has_no_means_and_lists_what_is_missing():
    record = new_record().with_scores({"mAP": 0.5}).with_scores({"mAP": 0.4}, "fog", 1)
    assert (record.is_complete, record.mPC, record.rPC) == (False, None, None)
    assert record.missing == [("fog", 5), ("snow", 1), ("snow", 5)]
    assert record.mean_of("fog") is None


def test_scores_of_corruptions_that_are_not_chosen_do_not_count():
    record = complete_record().with_scores({"mAP": 0.9}, "frost", 1)
    assert record.mPC == pytest.approx(0.25)


def test_undefined_scores_give_undefined_means():
    assert complete_record(clean=0.0).rPC is None
    assert complete_record().with_scores({"mAP": None}, "fog", 1).mPC is None


def test_differences_name_the_field_and_both_values():
    record = new_record()
    assert record.differences(new_record(severities=[1])) == []
    assert record.differences(new_record(severities=[1]), also=("severities",))
    assert record.differences(new_record(versions={"numpy": "1"})) == ["versions.numpy was '2', is '1'"]


def test_the_command_repeats_the_corruptions_severities_and_weights_of_a_record(tmp_path):
    start = ["python", "-m", "detection.evaluate", str(tmp_path), "--corruptions"]
    assert command_for(tmp_path).split() == start
    options = ["fog,snow", "--severities", "1,5", "--checkpoint", "best"]
    assert command_for(tmp_path, new_record(checkpoint="best.pt")).split() == [*start, *options]
    of_all = new_record(corruptions=[f"c{number}" for number in range(NUM_CORRUPTIONS)])
    assert command_for(tmp_path, of_all).split() == [*start, "--severities", "1,5"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty"])
def test_a_corrupt_file_is_named_with_the_problem_and_the_command_that_repairs_it(tmp_path, damage):
    write_robustness(tmp_path, complete_record())
    path = tmp_path / CORRUPTIONS_FILE
    content = json.loads(path.read_text())
    del content["severities"]
    path.write_text({"truncated": path.read_text()[:100], "missing": json.dumps(content), "empty": ""}[damage])
    with pytest.raises(ValueError, match=f"python -m detection.evaluate {tmp_path} --corruptions") as error:
        read_robustness(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert "severities" in str(error.value) or damage != "missing"
    assert "\n" not in str(error.value)
