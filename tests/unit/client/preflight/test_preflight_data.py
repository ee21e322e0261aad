"""`site check` on real DICOM files into which one fault was planted: the line about it says so, and no other fails."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from fedgraft.client.data.cohorts import splits
from fedgraft.client.data.cohorts.cohort import CohortRequest, load_cohort
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.enrolment.pseudonyms import keep_key, patient_key, place_of
from fedgraft.client.preflight.check import Check, SiteUnderCheck
from fedgraft.client.preflight.report import FindingLine, Level
from fedgraft.common.study.inputs import SplitSpec
from fedgraft.common.study.study import Study, parse_study
from helpers.site_home import CLASSES, KEY, STUDY, Hospital, study


def failing(lines: dict[str, FindingLine]) -> set[str]:
    return {name for name, line in lines.items() if line.level is Level.FAILS}


def noted(lines: dict[str, FindingLine]) -> set[str]:
    return {name for name, line in lines.items() if line.level is Level.NOTE}


def copy(hospital: Hospital, source: Path, name: str, **elements: object) -> Path:
    """Another file with the same pixels, as another image."""
    path = source.with_name(name)
    shutil.copy(source, path)
    hospital.edit(path, SOPInstanceUID=generate_uid(), **elements)
    return path


def test_a_hospital_in_order_has_no_failing_line(hospital: Hospital) -> None:
    lines = hospital.lines("data")
    assert failing(lines) == set()
    assert noted(lines) == {"burned_in"}  # phantoms do not carry the flag
    assert lines["readable"].figures == {"images": 64, "unreadable": {}, "other_files": 0}
    assert lines["labels_cls"].figures == {"cases": 64, "labelled": 64}
    told = Counter(row["diagnosis"] for row in hospital.rows())
    assert lines["classes_cls"].figures == {"counts": {label: 2 * told[label] for label in CLASSES}}
    assert lines["splits"].figures["patients"] == {"train": 16, "val": 8, "test": 8}
    assert lines["splits"].figures["cases"] == {"train": 32, "val": 16, "test": 16}
    assert lines["duplicates"].level is lines["one_patient_two_splits"].level is Level.FINE
    assert lines["patient_ids"].figures == {"patients": 32, "without_id": 0, "alike": 0}
    assert lines["joined"].figures == {"images_without_row": 0, "rows_without_image": 0}
    assert lines["blank"].level is Level.FINE
    for name, counts in {
        "modality": {"CR": 64},
        "vendor": {"fedgraft phantom": 64},
        "photometric": {"MONOCHROME2": 64},
        "bits": {"12": 64},
        "spacing": {"5.3 mm": 64},
        "window": {"window": 64},
    }.items():
        assert (lines[name].level, lines[name].figures) == (Level.FINE, {"counts": counts}), name


def test_every_line_that_is_not_fine_says_what_to_do(hospital: Hospital) -> None:
    for file in hospital.files()[:8]:
        file.write_bytes(b"")
    hospital.edit(hospital.files()[-1], PatientID="", BurnedInAnnotation="YES")
    for line in hospital.lines("data").values():
        assert bool(line.fix) == (line.level in (Level.NOTE, Level.FAILS)), line


def test_a_few_unreadable_files_are_noted_and_many_fail(hospital: Hospital) -> None:
    files = hospital.files()
    files[0].write_bytes(files[0].read_bytes()[:1500])
    files[1].write_bytes(b"")
    (files[0].parent / "README.txt").write_text("exported by the archive")
    lines = hospital.lines("data")
    assert lines["readable"].figures == {
        "images": 62, "unreadable": {"truncated": 1, "empty_file": 1}, "other_files": 1,
    }  # fmt: skip
    assert (lines["readable"].level, failing(lines)) == (Level.NOTE, set())
    for file in files[2:9]:
        file.write_bytes(b"")
    assert failing(hospital.lines("data")) == {"readable"}


def test_nothing_usable_is_one_line_and_its_text_stays_here(hospital: Hospital) -> None:
    for file in hospital.files():
        file.write_bytes(b"")
    report = hospital.check("data")
    (line,) = report.parts[0].findings.lines
    assert (line.name, line.level) == ("cohort", Level.FAILS)
    assert "nothing in" in report.private[0]
    assert any(text.startswith("left out: ") and "empty_file" in text for text in report.private)


def test_images_flagged_with_burned_in_text_fail(hospital: Hospital) -> None:
    for file in hospital.files()[:3]:
        hospital.edit(file, BurnedInAnnotation="YES")
    lines = hospital.lines("data")
    assert failing(lines) == {"burned_in"}
    assert lines["burned_in"].figures["flagged"] == 3
    assert lines["readable"].figures["unreadable"] == {}


def test_a_site_whose_files_all_say_no_text_is_burned_in_is_fine(hospital: Hospital) -> None:
    for file in hospital.files():
        hospital.edit(file, BurnedInAnnotation="NO")
    assert hospital.lines("data")["burned_in"].level is Level.FINE


def test_the_same_file_twice_and_the_same_pixels_of_one_patient_are_noted(hospital: Hospital) -> None:
    first, second = hospital.files()[:2]
    shutil.copy(first, first.with_name("again.dcm"))
    copy(hospital, second, "exported_again.dcm")
    report = hospital.check("data")
    line = next(line for line in report.parts[0].findings.lines if line.name == "duplicates")
    assert line.level is Level.NOTE
    assert line.figures == {"same_instance": 1, "same_pixels": 1, "of_several_patients": 0, "with_other_labels": 0}
    assert any("exported_again.dcm" in text and second.name in text for text in report.private)


def test_a_file_that_was_copied_is_noted_though_it_is_left_out(hospital: Hospital) -> None:
    first = hospital.files()[0]
    shutil.copy(first, first.with_name("again.dcm"))
    line = hospital.lines("data")["duplicates"]
    assert (line.level, line.figures["same_instance"], line.figures["same_pixels"]) == (Level.NOTE, 1, 0)


def test_the_same_pixels_under_two_patients_fail(hospital: Hospital) -> None:
    files = hospital.files()
    one = dcmread(files[0])
    other = next(f for f in files if row_of(hospital, f)["diagnosis"] != row_of(hospital, files[0])["diagnosis"])
    copy(hospital, files[0], "stray.dcm", PatientID=dcmread(other).PatientID, StudyInstanceUID=generate_uid())
    line = hospital.lines("data")["duplicates"]
    assert line.level is Level.FAILS
    assert line.figures["of_several_patients"] == line.figures["with_other_labels"] == 1
    assert one.PatientID not in line.description


def row_of(hospital: Hospital, path: Path) -> dict[str, str]:
    patient = dcmread(path).PatientID
    return next(row for row in hospital.rows() if row["PatientID"] == patient)


def test_pixels_in_another_transfer_syntax_and_polarity_are_still_the_same(hospital: Hospital) -> None:
    source = hospital.files()[0]
    path = copy(hospital, source, "compressed.dcm")
    dataset = dcmread(path)
    dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    dataset.save_as(path)
    assert hospital.lines("data")["duplicates"].figures["same_pixels"] == 1


def test_one_study_under_two_patient_ids_is_seen_when_it_is_torn_apart(hospital: Hospital) -> None:
    """Every patient's second image gets an id of its own, as careless pseudonymisation does per file."""
    rows = hospital.rows()
    for file in hospital.files()[1::2]:
        patient = dcmread(file).PatientID
        hospital.edit(file, PatientID=f"X{patient}")
        rows.append({**next(row for row in rows if row["PatientID"] == patient), "PatientID": f"X{patient}"})
    hospital.write_rows(rows)
    report = hospital.check("data")
    lines = {line.name: line for line in report.parts[0].findings.lines}
    assert failing(lines) == {"one_patient_two_splits"}
    assert 5 <= lines["one_patient_two_splits"].figures["groups"] <= 32
    told = [text for text in report.private if text.startswith("in two splits: ")]
    assert len(told) == lines["one_patient_two_splits"].figures["groups"]


def test_files_without_a_patient_id_fail(hospital: Hospital) -> None:
    for file in hospital.files()[:4]:
        hospital.edit(file, PatientID="", StudyInstanceUID=generate_uid())
    lines = hospital.lines("data")
    assert "patient_ids" in failing(lines)
    assert lines["patient_ids"].figures["without_id"] == 4


def test_ids_that_differ_in_zeros_and_case_alone_are_noted(hospital: Hospital) -> None:
    hospital.edit(hospital.files()[0], PatientID="p1", StudyInstanceUID=generate_uid())
    line = hospital.lines("data")["patient_ids"]
    assert (line.level, line.figures["alike"]) == (Level.NOTE, 2)


def test_missing_labels_are_counted_and_too_many_fail(hospital: Hospital) -> None:
    rows = hospital.rows()
    for row in rows[:8]:
        row["diagnosis"] = ""
    hospital.write_rows(rows)
    line = hospital.lines("data")["labels_cls"]
    assert (line.level, line.figures) == (Level.NOTE, {"cases": 64, "labelled": 48})
    for row in rows[:20]:
        row["diagnosis"] = ""
    hospital.write_rows(rows)
    assert "labels_cls" in failing(hospital.lines("data"))


def test_no_label_at_all_fails_only_if_no_stage_can_do_without(hospital: Hospital) -> None:
    hospital.write_config(cohort={"labels": None})
    assert hospital.lines("data")["labels_cls"].level is Level.NOTE  # graft adapts norm layers of all sites
    averaged = study(method={"name": "fedavg", "rounds": 1, "local": {"epochs": 1}})
    assert "labels_cls" in failing(hospital.lines("data", against=averaged))


def test_rows_and_images_without_each_other_are_counted(hospital: Hospital) -> None:
    rows = hospital.rows()
    rows[0]["PatientID"] = "someone else"
    hospital.write_rows(rows)
    line = hospital.lines("data")["joined"]
    assert (line.level, line.figures) == (Level.NOTE, {"images_without_row": 2, "rows_without_image": 1})


def relabel(hospital: Hospital, change: Callable[[str], str]) -> None:
    hospital.write_rows([{**row, "diagnosis": change(row["diagnosis"])} for row in hospital.rows()])


def test_a_class_that_no_patient_has_is_noted_and_a_single_class_fails(hospital: Hospital) -> None:
    relabel(hospital, lambda label: "none" if label == "ring" else label)
    line = hospital.lines("data")["classes_cls"]
    assert (line.level, line.figures["counts"]["ring"]) == (Level.NOTE, 0)
    assert "no case of ring" in line.description
    relabel(hospital, lambda _: "smooth")
    assert failing(hospital.lines("data")) == {"classes_cls"}


def test_a_class_without_a_training_case_is_noted(hospital: Hospital) -> None:
    """The site's patients were split before their labels were corrected."""
    config, asked = read_site(hospital.home), study()
    keep_key(hospital.home / "state", KEY)  # under another one chance may train with all who have a ring
    place = place_of(config, asked.digest)
    cohort = load_cohort(
        "north", config.cohort, CohortRequest(asked.tasks, asked.input, asked.split, asked.seed), place
    )
    trained = {cohort.patients[at] for at in cohort.splits["train"].tolist()}
    rows = hospital.rows()
    for row in rows:
        if row["diagnosis"] == "ring" and place.patient(row["PatientID"]) in trained:
            row["diagnosis"] = "none"
    hospital.write_rows(rows)
    line = hospital.lines("data")["classes_cls"]
    assert line.level is Level.NOTE
    assert "no training case of ring" in line.description
    assert line.figures["counts"]["ring"] > 0


def test_labels_that_are_no_class_are_one_line_without_the_cell(hospital: Hospital) -> None:
    relabel(hospital, lambda label: "Meier, Anna" if label == "ring" else label)
    report = hospital.check("data")
    assert [line.name for line in report.parts[0].findings.lines] == ["cohort"]
    assert "line" in report.private[0]
    assert "Meier" not in str(report.content())


def test_a_missing_folder_is_one_line(hospital: Hospital) -> None:
    hospital.write_config(cohort={"root": "/nowhere/DOE"})
    report = hospital.check("data")
    assert [line.name for line in report.parts[0].findings.lines] == ["cohort"]
    assert "DOE" in report.private[0]
    assert "DOE" not in str(report.content())


SPOILED = {
    "modality": ({"Modality": "DOE^JANE"}, Level.NOTE, {"CR": 60, "other": 4}),
    "vendor": ({"Manufacturer": "Praxis Dr. Meier"}, Level.FINE, {"fedgraft phantom": 60, "other": 4}),
    "photometric": ({"PhotometricInterpretation": "MONOCHROME1"}, Level.FINE, {"MONOCHROME2": 60, "MONOCHROME1": 4}),
    "spacing": ({"PixelSpacing": None}, Level.NOTE, {"5.3 mm": 60, "not stated": 4}),
    "window": ({"WindowCenter": None, "WindowWidth": None}, Level.NOTE, {"window": 60, "not stated": 4}),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_files_say_of_themselves_is_counted_from_fixed_lists(hospital: Hospital, name: str) -> None:
    elements, level, counts = SPOILED[name]
    for file in hospital.files()[:4]:
        hospital.edit(file, **elements)
    lines = hospital.lines("data")
    assert (lines[name].level, lines[name].figures) == (level, {"counts": counts})
    assert failing(lines) == set()


def test_other_bits_are_counted(hospital: Hospital) -> None:
    file = hospital.files()[0]
    hospital.edit(file, BitsStored=16, HighBit=15)
    assert hospital.lines("data")["bits"].figures == {"counts": {"12": 63, "16": 1}}


def test_a_window_of_the_sites_own_needs_none_in_the_files(hospital: Hospital) -> None:
    hospital.edit(hospital.files()[0], WindowCenter=None, WindowWidth=None)
    hospital.write_config(cohort={"window": {"center": 2000, "width": 4000}})
    assert hospital.lines("data")["window"].level is Level.FINE


def test_a_blank_image_is_noted_and_is_no_duplicate(hospital: Hospital) -> None:
    for file in hospital.files()[:2]:
        dataset = dcmread(file)
        dataset.PixelData = np.zeros((dataset.Rows, dataset.Columns), np.uint16).tobytes()
        dataset.save_as(file)
    lines = hospital.lines("data")
    assert (lines["blank"].level, lines["blank"].figures) == (Level.NOTE, {"images": 2})
    assert lines["duplicates"].level is Level.FINE


def test_too_few_patients_to_split(hospital: Hospital) -> None:
    first = dcmread(hospital.files()[0]).PatientID
    for file in hospital.files():
        if dcmread(file).PatientID != first:
            file.unlink()
    lines = hospital.lines("data")
    assert lines["splits"].level is Level.NOTE
    assert lines["splits"].description.startswith("nobody in val, test")


def test_a_tiny_site_of_a_private_study_is_told_that_chance_left_nobody_to_test(hospital: Hospital) -> None:
    """Patients are not dealt out to fill the gap, since then one would move others; so the next step is said."""
    for path in hospital.files():
        if int(path.name[1:5]) > 4:
            path.unlink()
    keep_key(hospital.home / "state", (14).to_bytes(32, "big"))
    local = {"kind": "gradient", "train": "heads", "steps": 1, "fixed_norm_stats": True}
    private = {"private": {"noise_multiplier": 1.0, "sample_rate": 0.5}}
    stage = {"name": "heads", "local": local | private, "share": "heads", "aggregate": {"kind": "mean"}}
    asked = {key: value for key, value in STUDY.items() if key != "method"} | {"plan": [stage]}
    line = hospital.lines("data", against=parse_study(asked, "test"))["splits"]
    assert line.level is Level.NOTE
    assert line.description.startswith("nobody in val, test: train 4 patients")
    assert "each by that patient alone (independent)" in line.description
    assert "another seed" in line.fix
    plain = hospital.lines("data")["splits"]
    assert "dealt out class by class (stratified)" in plain.description
    assert "another seed" not in plain.fix


def test_splits_of_another_study_are_found_before_the_study_starts(hospital: Hospital) -> None:
    state = hospital.home / "state"
    hospital.lines("data")
    assert not (state / "splits.csv").exists()  # looking at a study decides nothing
    splits.write(
        state / "splits.csv", {}, splits.Dealing(SplitSpec(train=0.6, val=0.15, test=0.25), 99, patient_key(state))
    )
    report = hospital.check("data")
    assert [line.name for line in report.parts[0].findings.lines] == ["cohort"]
    assert "another seed" in report.private[0]
    assert str(state / "splits.csv") in report.private[0]
    hospital.write_config(many_studies=True)  # another study has a folder of its own
    assert failing(hospital.lines("data")) == set()


TABLE = {
    "input": {"kind": "table", "numeric": ["age", "size"], "categorical": {"sex": ["f", "m"]}},
    "tasks": [{"name": "cls", "classes": ["no", "yes"]}],
    "model": {"backbone": "table_linear", "weights": None},
    "method": {"name": "fedavg", "rounds": 1, "local": {"epochs": 1}},
}


def table_study() -> Study:
    return study(**{key: value for key, value in TABLE.items() if key in STUDY})


def write_table(hospital: Hospital, rows: list[str]) -> None:
    (hospital.data / "table.csv").write_text("\n".join(["id,age,size,sex,cls", *rows]) + "\n")
    cohort = {"kind": "table", "root": str(hospital.data / "table.csv"), "labels": None}
    hospital.write_config(cohort=cohort | {"patient_column": "id"})


def test_tables_are_checked_for_values_and_equal_rows(hospital: Hospital) -> None:
    rows = [f"p{n},{30 + n},{n}.5,{'fm'[n % 2]},{('no', 'yes')[n % 3 == 0]}" for n in range(24)]
    write_table(hospital, rows)
    lines = hospital.lines("data", against=table_study())
    assert (failing(lines), noted(lines)) == (set(), set())
    assert lines["values"].figures == {"rows": 24, "problems": {}, "empty_columns": 0}
    write_table(hospital, [*rows, "p24,30,0.5,f,yes", "p25,,1.5,x,no", "p26,31,,,no"])
    lines = hospital.lines("data", against=table_study())
    assert noted(lines) == {"values", "duplicates"}
    assert lines["values"].figures["problems"] == {"missing_category": 1, "missing_value": 2, "unknown_category": 1}
    assert lines["duplicates"].figures == {"rows": 2}
    write_table(hospital, [f"p{n},,{n}.5,f,{('no', 'yes')[n % 3 == 0]}" for n in range(24)])
    assert failing(hospital.lines("data", against=table_study())) == {"values"}


def test_without_a_patient_column_the_splits_may_not_be_by_patient(hospital: Hospital) -> None:
    write_table(hospital, [f"p{n},{30 + n},{n}.5,{'fm'[n % 2]},{('no', 'yes')[n % 3 == 0]}" for n in range(24)])
    cohort = {"kind": "table", "root": str(hospital.data / "table.csv"), "labels": None}
    hospital.write_config(cohort=cohort)
    assert hospital.lines("data", against=table_study())["patient_ids"].level is Level.NOTE


def test_without_a_study_data_cannot_be_judged(hospital: Hospital) -> None:
    report = Check(SiteUnderCheck(hospital.home, read_site(hospital.home)), None, lambda _: None).run(["data"])
    (line,) = report.parts[0].findings.lines
    assert line.level is Level.SKIPPED
    assert report.failing == 0


def test_entries_for_labels_that_the_study_has_not_are_told(hospital: Hospital) -> None:
    """A task that is misspelt there once left the usual column in its place, without a word."""
    given = {"label_columns": {"clss": "finding"}, "label_map": {"other": {"x": "none"}, "cls": {"x": "none"}}}
    hospital.write_config(cohort=given)
    lines = hospital.lines("data")
    assert lines["notes_label_columns"].level is lines["notes_label_map"].level is Level.NOTE
    assert "'clss'; did you mean cls?" in lines["notes_label_columns"].fix
    assert lines["notes_label_map"].description == "label_map has entries for no task of the study: other"


def test_strangers_are_counted_with_their_reasons(hospital: Hospital) -> None:
    (hospital.data / "dicom" / "notes.txt").write_text("which patients are which")
    (hospital.data / "dicom" / ".trash").write_text("")
    line = hospital.lines("data")["readable"]
    assert (line.level, line.figures["other_files"]) == (Level.FINE, 2)
    assert "2 other files passed over (hidden 1, not_dicom 1)" in line.description
