"""Slices of the validation images: CSV files, built-in slices, and where a difference between detectors is found."""

import csv
import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from ablation import compare as command
from ablation import grid as grid_command
from ablation import slices
from ablation.display.difference_tables import slice_tables
from ablation.display.report import write_report
from ablation.display.sentences import conclusion_of
from ablation.display.tables import to_csv
from stats.bootstrap import average_precision, image_weights, mean_average_precision, resampled_scores
from stats.image_statistics import load_statistics
from stats.slices import restrict
from tests.ablation.conftest import IMAGES, fake_matches

NIGHT = np.arange(IMAGES) % 2 == 0
REPLICATES = 800  # enough for two slices of one cell


def add_detector(experiments, row, quality, seed, objects=None, **changes):
    """Add a detector that finds the fraction quality[i] of the objects in image i.

    objects: (G,) bool, which of the 2 * IMAGES objects exist; image i has the objects i and IMAGES + i."""
    matches = fake_matches(0.5, [seed, *row.encode()])
    found = np.random.default_rng([seed, *row.encode()]).random(len(matches.scores)) < quality[matches.detection_images]
    matches = replace(matches, true_positives=np.repeat(found[:, None], matches.true_positives.shape[1], axis=1))
    if objects is not None:
        matches = replace(
            matches,
            true_positives=matches.true_positives & objects[:, None],
            object_images=matches.object_images[objects],
            object_classes=matches.object_classes[objects],
        )
    score = float(mean_average_precision(average_precision(matches, np.ones((1, IMAGES), int)))[0])
    path = experiments.add(row, seed=seed, scores={"mAP": score}, **changes)
    matches.save(path)
    return path


def write_rows(path, rows, header="image_id,night"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def night_csv(folder, name="night.csv"):
    return write_rows(folder / name, enumerate(np.where(NIGHT, "yes", "no")))


@pytest.fixture(scope="module")
def pair(new_experiments):
    """Return two detectors, four seeds each; `new` finds more objects than `old` at night only. Read-only."""
    experiments = new_experiments()
    for seed in range(4):
        add_detector(experiments, "old", np.full(IMAGES, 0.4), seed)
        add_detector(experiments, "new", np.where(NIGHT, 0.9, 0.4), seed)
    return experiments


@pytest.fixture(scope="module")
def comparison(pair, tmp_path_factory):
    source = night_csv(tmp_path_factory.mktemp("slices"))
    return pair.compare(slices=[source], replicates=REPLICATES, baseline="old x none")


# ---- differences -------------------------------------------------------------------------------------------


def test_a_difference_at_night_is_found_at_night_and_not_by_day(comparison):
    found = {each.slice.name: each for each in comparison.slices}
    assert found.keys() == {"night=yes", "night=no"}
    night, day = (found[f"night={value}"].difference for value in ("yes", "no"))
    assert night.is_significant
    assert night.simultaneous[0] > 0.15
    assert not day.is_significant
    assert day.simultaneous[0] < 0 < day.simultaneous[1]
    assert "In slice night=yes (30 images), 'new x none' minus 'old x none' is +0." in " ".join(
        conclusion_of(comparison)
    )


def test_one_test_shows_that_the_difference_depends_on_the_attribute(comparison):
    (change,) = comparison.slice_interactions
    night, day = (
        next(each for each in comparison.slices if each.slice.name == f"night={value}").difference.interval.estimate
        for value in ("yes", "no")
    )
    sign = 1 if change.slice.name == "night=yes" else -1
    assert change.difference.interval.estimate == pytest.approx(sign * (night - day))
    assert change.difference.is_significant
    assert change.difference.num_tests == 1


def test_scores_on_a_slice_are_the_mean_over_runs_of_the_score_on_its_images(comparison):
    for each in comparison.slices:
        expected = []
        for run in each.cell.runs:
            part = restrict(load_statistics(run.path), each.slice.images)
            expected.append(resampled_scores(part, np.ones((1, 30), int))[0]["mAP"][0])
        assert each.score == pytest.approx(np.mean(expected), abs=1e-12)


def test_slices_use_the_resamples_of_the_whole_comparison(comparison):
    drawn = image_weights(IMAGES, REPLICATES, 0)
    scores = slices.subset_scores(comparison, [NIGHT])[NIGHT.tobytes()]
    for cell, values in zip(comparison.scored_cells, scores, strict=True):
        for run, found in zip(cell.runs, values, strict=True):
            expected, _ = resampled_scores(load_statistics(run.path), drawn * NIGHT)  # no image by day is drawn
            np.testing.assert_allclose(found[1:], expected["mAP"], rtol=0, atol=1e-12)


def test_three_slices_are_each_compared_with_the_rest(pair, tmp_path):
    source = write_rows(tmp_path / "camera.csv", ((i, "abc"[i % 3]) for i in range(IMAGES)), "image_id,camera")
    comparison = pair.compare(slices=[source], baseline="old x none")
    assert [each.slice.name for each in comparison.slice_interactions] == ["camera=a", "camera=b", "camera=c"]
    assert all(each.is_unreliable for each in comparison.slices)  # 20 images
    first = comparison.slice_interactions[0]
    rest = ~first.slice.images
    scores = slices.subset_scores(comparison, [first.slice.images, rest])
    new, old = ([scores[part.tobytes()][k][:, 0].mean() for part in (first.slice.images, rest)] for k in (0, 1))
    if comparison.scored_cells[0].row == "old":
        new, old = old, new
    assert first.difference.interval.estimate == pytest.approx((new[0] - old[0]) - (new[1] - old[1]))


def test_too_few_resamples_for_the_family_are_reported(pair, tmp_path):
    source = night_csv(tmp_path)
    assert any("--replicates 800" in warning for warning in pair.compare(slices=[source]).warnings)  # 200 resamples
    assert not any("--replicates" in each for each in pair.compare(slices=[source], replicates=800).warnings)


# ---- tables ------------------------------------------------------------------------------------------------


def test_tables_list_images_objects_and_corrected_tests(comparison):
    table, changes = slice_tables(comparison)
    lines = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert lines["night=yes"]["images"] == "30"
    assert lines["night=yes"]["objects"] == "60"
    assert lines["night=yes"]["verdict"] == "significant"
    assert lines["night=no"]["verdict"] == "not shown"
    assert len(table.bold) == 1
    assert changes.rows[0][changes.header.index("verdict")] == "significant"
    day = next(each for each in comparison.slices if each.slice.name == "night=no").difference
    assert lines["night=no"]["at most"] == f"{day.bound:.4f}"
    assert abs(day.interval.estimate) < day.bound <= max(map(abs, day.simultaneous))


def test_csv_has_the_slices_as_columns_on_the_lines_of_the_cells(comparison):
    lines = {line["backbone"]: line for line in csv.DictReader(io.StringIO(to_csv(comparison)))}
    assert lines.keys() == {"old", "new"}
    night = next(each for each in comparison.slices if each.slice.name == "night=yes").difference
    assert float(lines["new"]["difference[night=yes]"]) == night.interval.estimate
    assert float(lines["new"]["difference_low[night=yes]"]) == night.simultaneous[0]
    assert lines["old"]["difference[night=yes]"] == ""
    assert float(lines["new"]["difference_at_most[night=yes]"]) == night.bound
    assert float(lines["new"]["interaction_p_holm[night=no]"]) < 0.05


def test_the_page_has_a_section_with_a_plot_and_tables(comparison, tmp_path):
    write_report(tmp_path / "report.html", comparison)
    text = (tmp_path / "report.html").read_text()
    assert '<section id="slices">' in text
    assert 'aria-label="new x none minus old x none, by slice"' in text
    assert "Does the difference depend on the slice?" in text


def test_a_command_without_slices_shows_none(pair, tmp_path):
    comparison = pair.compare()
    assert slice_tables(comparison) == []
    assert "[" not in to_csv(comparison).splitlines()[0]
    write_report(tmp_path / "report.html", comparison)
    assert 'id="slices"' not in (tmp_path / "report.html").read_text()


# ---- attributes from CSV files -----------------------------------------------------------------------------


def test_images_without_a_row_or_value_are_in_no_slice(pair, tmp_path):
    rows = [(i, "" if i < 3 else "yes" if i % 2 else "no") for i in range(50)]
    comparison = pair.compare(slices=[write_rows(tmp_path / "night.csv", rows)])
    assert {each.slice.name: each.slice.num_images for each in comparison.slices} == {"night=yes": 24, "night=no": 23}
    assert "10 of 60 images are not in night.csv; they are in no slice." in comparison.slice_notes
    assert not slices.rest_of(comparison.slices[0].slice, [each.slice for each in comparison.slices])[50:].any()


def test_numbers_with_many_values_become_ranges_and_few_values_stay(pair, tmp_path):
    rows = [(i, i / 10, i % 4 + 7) for i in range(IMAGES)]
    comparison = pair.compare(slices=[write_rows(tmp_path / "a.csv", rows, "image_id,depth,hour")])
    assert list(dict.fromkeys(each.slice.name for each in comparison.slices)) == [
        "depth 0 to 2.9", "depth 3 to 5.9", "hour=7", "hour=8", "hour=9", "hour=10",
    ]  # fmt: skip


def test_a_slice_with_fewer_than_10_images_is_listed_but_not_compared(pair, tmp_path):
    rows = [(i, "snow" if i < 9 else "rain" if i < 30 else "sun") for i in range(IMAGES)]
    comparison = pair.compare(slices=[write_rows(tmp_path / "a.csv", rows, "image_id,weather")])
    assert {each.slice.name for each in comparison.slices} == {"weather=rain", "weather=sun"}
    assert any("weather=snow (9)" in note for note in comparison.slice_notes)
    assert [each.slice.name for each in comparison.slice_interactions] == ["weather=rain", "weather=sun"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; expected a header"),
        ("image_id,night\n", "only a header"),
        ("image,night\n1,yes\n", "header 'image,night': expected image_id"),
        ("image_id\n1\n", "header 'image_id'"),
        ("image_id;night\n1;yes\n", r"a\.csv: header 'image_id;night': .* separated by semicolons: export .* commas"),
        ("image_id\tnight\n1\tyes\n", "separated by tabs"),
        ("image_id,a,a\n1,2,3\n", "different name"),
        ("image_id,night\n1,yes\n2,no,3\n", "row '2,no,3' has 3 fields; expected 2"),
        ("image_id,night\n1,yes\n2,no\n77,no\n78,no\n", r"2 of 4 ids are not validation images \(77, 78\)"),
        ("image_id,night\n1,yes\n2,no\n1,no\n", r"1 ids have several rows \(1\)"),
        ("image_id,night\n1,yes\n2,yes\n", "night has the single value 'yes'"),
        ("image_id,x\n" + "".join(f"{i},v{i}\n" for i in range(IMAGES)), "60 slices .x: 60., at most 20"),
        (b"image_id,night\n1,\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_an_invalid_csv_file_is_one_line(pair, tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        pair.compare(slices=[str(path)])
    assert "\n" not in str(error.value)


def test_the_same_attribute_in_two_files_is_refused(pair, tmp_path):
    with pytest.raises(ValueError, match="night=no is defined twice"):
        pair.compare(slices=[night_csv(tmp_path, "a.csv"), night_csv(tmp_path, "b.csv")])


# ---- built-in slices and annotation files ------------------------------------------------------------------


def annotations(areas):
    """Return an annotation file with one object per image, of these areas; 0: no object."""
    return {
        "images": [{"id": i, "file_name": f"{i:03}.jpg"} for i in range(IMAGES)],
        "annotations": [
            {"image_id": i, "bbox": [0, 0, area, 1]} for i, area in enumerate(areas) if area
        ] + [{"image_id": 0, "bbox": [0, 0, 1e6, 1], "area": 1e6, "iscrowd": 1}],
    }  # fmt: skip


@pytest.fixture
def annotated(experiments, tmp_path):
    """Return (experiments, path) of two detectors whose records name an annotation file: objects of three sizes."""
    areas = np.repeat([0, 30**2, 50**2, 100**2], [4, 20, 20, 16])
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(annotations(areas.tolist())))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for row in ("old", "new"):
        add_detector(experiments, row, np.full(IMAGES, 0.5), 0, protocol={"annotations_sha256": digest},
                     inputs={str(path): digest})  # fmt: skip
    return experiments, path


def test_images_are_grouped_by_the_median_area_of_their_objects(annotated):
    experiments, _ = annotated
    comparison = experiments.compare(slices=["size"])
    found = {each.slice.name: each.slice.images for each in comparison.slices}
    assert list(found) == ["size=small", "size=medium", "size=large"]
    assert [np.flatnonzero(images).min() for images in found.values()] == [4, 24, 44]
    assert [images.sum() for images in found.values()] == [20, 20, 16]
    assert "4 images without objects are in no slice by size." in comparison.slice_notes


def test_file_names_are_matched_with_the_annotation_file(annotated, tmp_path):
    experiments, _ = annotated
    rows = [(f"{i:03}.jpg", "yes" if i < 25 else "no") for i in reversed(range(IMAGES))]
    comparison = experiments.compare(slices=[write_rows(tmp_path / "a.csv", rows, "file_name,night")])
    night = next(each.slice for each in comparison.slices if each.slice.name == "night=yes")
    assert np.flatnonzero(night.images).tolist() == list(range(25))


@pytest.mark.parametrize("change", ["missing", "different"])
def test_size_is_skipped_with_the_name_of_the_file_if_the_annotations_are_not_there(annotated, tmp_path, change):
    experiments, path = annotated
    path.unlink()
    if change == "different":
        path.write_text("{}")
    comparison = experiments.compare(slices=["size"])
    assert comparison.slices == []
    assert any("--slices size: skipped" in line and str(path) in line for line in comparison.warnings)
    with pytest.raises(ValueError, match=r"instances_val\.json.*use image_id"):
        experiments.compare(slices=[write_rows(tmp_path / "a.csv", [("000.jpg", 1)], "file_name,night")])


def test_annotations_that_were_moved_are_named_with_an_option(annotated, tmp_path):
    experiments, path = annotated
    moved = path.rename(tmp_path / "moved.json")
    assert any("--annotations FILE" in line for line in experiments.compare(slices=["size"]).warnings)
    assert len(experiments.compare(slices=["size"], annotations=moved).slices) == 3
    rows = [(f"{i:03}.jpg", i % 2) for i in range(IMAGES)]
    source = write_rows(tmp_path / "a.csv", rows, "file_name,odd")
    assert len(experiments.compare(slices=[source], annotations=moved).slices) == 2
    with pytest.raises(ValueError, match=r"a\.csv.*--annotations FILE"):
        experiments.compare(slices=[source])


def test_a_different_annotation_file_is_refused(annotated, tmp_path):
    experiments, path = annotated
    (tmp_path / "other.json").write_text("{}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"other\.json: SHA-256 44136fa3; .*{digest[:8]}"):
        experiments.compare(slices=["size"], annotations=tmp_path / "other.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--annotations", "val.json"], "--slices"), (["--annotations", "no.json", "--slices", "size"], "no.json")],
)
def test_parsing_refuses_annotations_without_use_or_file(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val.json").touch()
    (tmp_path / "grid.yaml").touch()
    for parse, words in ((command.parse_arguments, []), (grid_command.parse_arguments, ["table"])):
        with pytest.raises(ValueError, match=message):
            parse([*words, "grid.yaml", *options])


def test_images_are_grouped_by_their_number_of_objects(experiments):
    objects = np.ones(2 * IMAGES, bool)
    objects[:20] = objects[IMAGES : IMAGES + 10] = False  # 10 images without objects, 10 with one
    for row in ("old", "new"):
        add_detector(experiments, row, np.full(IMAGES, 0.5), 0, objects)
    comparison = experiments.compare(slices=["objects"])
    found = {each.slice.name: (each.slice.num_images, each.slice.num_objects) for each in comparison.slices}
    assert found == {"objects 0 to 1": (20, 10), "objects 2": (40, 80)}


def test_one_number_of_objects_in_all_images_gives_no_slices(pair):
    comparison = pair.compare(slices=["objects"])
    assert comparison.slices == []
    assert any(line.startswith("--slices objects: skipped") for line in comparison.warnings)


# ---- other tasks, and the command --------------------------------------------------------------------------


def test_a_classifier_has_no_objects_but_has_slices_of_a_csv_file(experiments, tmp_path):
    for row in ("small", "large"):
        experiments.add_classifier(row, top1=0.5)
    with pytest.raises(ValueError, match="--slices size: classification has no objects; use a CSV file"):
        experiments.compare(slices=["size"])
    ids = load_statistics(next(experiments.folder.iterdir())).image_ids
    source = write_rows(tmp_path / "a.csv", ((name, i % 2) for i, name in enumerate(ids)), "file_name,odd")
    comparison = experiments.compare(slices=[source], replicates=REPLICATES)
    assert [(each.slice.name, each.slice.num_images) for each in comparison.slices] == [("odd=0", 60), ("odd=1", 60)]
    assert "objects" not in slice_tables(comparison)[0].header
    share = comparison.slices[0].cell.mean
    assert share == pytest.approx(np.mean([each.score for each in comparison.slices]))


def test_the_command_writes_slices_in_every_format_and_names_unknown_ones(pair, tmp_path, run_in_process):
    source = night_csv(tmp_path)
    paths = sorted(pair.folder.iterdir())
    for form in ("md", "latex", "csv"):
        _, out, _ = run_in_process(command, *paths, "--slices", f"objects,{source}", "--format", form)
        assert "night=yes" in out
    code, _, error = run_in_process(command, *paths, "--slices", "object")
    assert code == 2
    assert "did you mean 'objects'?" in error[-1]


def test_the_parser_knows_the_built_in_slices():
    assert set(command.BUILT_IN_SLICES) == slices.BUILT_IN.keys()
