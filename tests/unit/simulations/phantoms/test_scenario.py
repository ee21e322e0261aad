"""Scenario files: all that ship load, paths are anchored, and every fault of a bad one is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedgraft.common.base.errors import StudyError
from fedgraft.simulations.phantoms.patients import cancer_parts
from fedgraft.simulations.phantoms.scenario import (
    SCENARIOS,
    PhantomSite,
    Scenario,
    load_scenario,
)

REAL = ("cxr", "cxr_hospitals", "heart", "heart_complete", "heart_flamby")
SHIPPED = (
    *("alike", "breast_cancer", "clinics", "folders", *REAL, "modalities", "newcomer", "shift"),
    *("source_and_target", "source_ctmr", "styles", "target", "three_step", "unseen_styles", "xray5", "xray_large"),
)


def load(folder: Path, content: object) -> Scenario:
    path = folder / "hospitals.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_scenario(path)


def faults_of(folder: Path, content: object) -> str:
    with pytest.raises(StudyError) as caught:
        load(folder, content)
    assert "hospitals.yaml" in str(caught.value)
    return "\n".join(caught.value.faults)


def site(name: str = "north", **phantom: object) -> dict[str, object]:
    return {"name": name, "phantom": {"patients": 4, **phantom}}


def test_the_shipped_scenarios_are_the_ones_that_are_tested():
    assert sorted(path.stem for path in SCENARIOS.glob("*.yaml")) == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_scenario_loads_by_its_name(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.synthetic == (name not in ("breast_cancer", "folders", *REAL))


def test_every_key_of_a_phantom_site_is_shown_with_a_comment():
    text = (SCENARIOS / "xray5.yaml").read_text()
    first = yaml.safe_load(text)["sites"][0]["phantom"]
    assert set(first) == set(PhantomSite.model_fields)
    assert set(first["scanner"]) == set(PhantomSite.model_fields["scanner"].annotation.model_fields)
    start = text.index("- name: north")
    lines = text[start : text.index("- name: harbour")].splitlines()[:-1]
    bare = [line for line in lines if ":" in line and "#" not in line]
    assert bare == []


def test_xray5_is_five_hospitals_of_which_one_is_tiny_and_one_writes_negatives_with_12_bits():
    phantoms = [entry.phantom for entry in load_scenario("xray5").sites]
    assert [phantom.patients for phantom in phantoms] == [130, 90, 100, 60, 24]
    negatives = [phantom.scanner for phantom in phantoms if phantom.scanner.polarity == "MONOCHROME1"]
    assert [scanner.bits_stored for scanner in negatives] == [12]
    assert len({phantom.scanner.syntax for phantom in phantoms}) == 5
    assert any(phantom.missing_labels > 0 for phantom in phantoms)


def test_relative_paths_of_a_cohort_are_relative_to_the_file_and_need_not_exist(tmp_path):
    cohorts = [
        {"name": "a", "cohort": {"kind": "dicom", "root": "a/dicom", "labels": "../labels.csv"}},
        {"name": "b", "cohort": {"kind": "images", "root": "/elsewhere/b"}},
    ]
    first, second = (entry.cohort for entry in load(tmp_path, {"name": "mine", "sites": cohorts}).sites)
    assert first.root == tmp_path / "a" / "dicom"
    assert first.labels.resolve() == tmp_path.parent / "labels.csv"
    assert second.root == Path("/elsewhere/b")
    assert second.labels is None


def test_all_faults_are_told_at_once_each_with_its_key(tmp_path):
    told = faults_of(
        tmp_path,
        {
            "name": "Not A Name",
            "seed": -1,
            "colour": "blue",
            "sites": [
                site("a", patient=4),
                site("b", prevalence={"none": 0.5, "ring": 0.4}),
                site("c", modality="pet", size_mm=[40, 20], images_per_patient=[0, 2]),
                site("d", scanner={"bits_stored": 7, "window": "two", "syntax": "jpegls", "gain": 1}),
                site("e", scanner={"gain": 0}),
                {"name": "f"},
                {"name": "g", "cohort": {"kind": "dicom"}},
                {"name": "h", "table": {"dataset": "iris", "patients": 10}},
                site("a") | {"faults": {"kind": "asleep", "rounds": [0]}},
            ],
        },
    )
    expected = [
        "name: ",
        "seed: ",
        "colour: ",
        "sites.0.phantom.patient: ",
        "sites.1.phantom.prevalence: the shares add up to 0.9, not 1",
        "sites.2.phantom.modality",
        "sites.2.phantom.size_mm: ",
        "sites.2.phantom.images_per_patient.0: ",
        "sites.3.phantom.scanner.bits_stored: ",
        "sites.3.phantom.scanner.window: ",
        "sites.3.phantom.scanner.syntax: ",
        "sites.4.phantom.scanner: gain must not be 0",
        "sites.5: needs exactly one of phantom, table and cohort",
        "sites.6.cohort.root: ",
        "sites.7.table.dataset: ",
        "sites.8.faults.kind: ",
        "sites.8.faults.rounds.0: ",
        "more than one site is called a",
    ]
    assert [key for key in expected if key not in told] == []


def test_what_a_scanner_cannot_write_is_refused_with_the_numbers(tmp_path):
    told = faults_of(tmp_path, {"name": "x", "sites": [site(modality="ct", scanner={"bits_stored": 8})]})
    assert "ct values (-1000.0, 1000.0) need pixels from 24 to 2024, but 8 unsigned bits hold (0, 255)" in told
    told = faults_of(tmp_path, {"name": "x", "sites": [site(scanner={"window": "voi_lut_sequence", "signed": True})]})
    assert "voi_lut_sequence needs unsigned pixels" in told
    told = faults_of(tmp_path, {"name": "x", "sites": [site(size_mm=[20, 90])]})
    assert "a finding of 90 mm is above 76.8 mm" in told


def test_an_unknown_name_lists_the_ones_that_ship():
    with pytest.raises(
        StudyError,
        match="breast_cancer, clinics, cxr, cxr_hospitals, folders, heart, heart_complete, heart_flamby",
    ):
        load_scenario("xray6")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(StudyError, match="no such file"):
        load_scenario(tmp_path / "none.yaml")


def test_the_digest_follows_what_is_generated_and_nothing_else(tmp_path):
    base = load(tmp_path, {"name": "x", "sites": [site()]})
    assert base.digest != load(tmp_path, {"name": "x", "seed": 1, "sites": [site()]}).digest
    assert base.digest != load(tmp_path, {"name": "x", "sites": [site(contrast=0.31)]}).digest
    faulty = site() | {"faults": {"kind": "crash", "rounds": [2]}}
    assert base.digest == load(tmp_path, {"name": "x", "sites": [faulty]}).digest


def test_table_sites_share_no_patient_and_have_the_sizes_and_shares_of_the_file():
    scenario = load_scenario("breast_cancer")
    parts = cancer_parts(scenario)
    counts = {name: (part.diagnoses.count("benign"), part.diagnoses.count("malignant")) for name, part in parts.items()}
    assert counts == {"screening": (202, 68), "referral": (45, 105), "practice": (89, 16), "clinic": (21, 23)}
    ids = [number for part in parts.values() for number in part.ids]
    assert len(ids) == len(set(ids)) == 569


def test_more_patients_than_the_table_has_are_refused(tmp_path):
    tables = [{"name": name, "table": {"patients": 150, "malignant": 0.8}} for name in "ab"]
    assert "ask for 240 malignant patients, but breast_cancer has 212" in faults_of(
        tmp_path, {"name": "x", "sites": tables}
    )
