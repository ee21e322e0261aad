"""One patient more or less changes that patient's part of a cohort and nothing else, where privacy is asked for.

Differential privacy counts what one patient changes in the sums. If that patient also moved others between train and
test, or changed their pixels or labels, the count would be wrong, and the epsilon that is reported with it.
"""

from __future__ import annotations

import csv
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from fedgraft.client.data.cohorts.batches import to_float
from fedgraft.client.data.cohorts.cohort import Cohort, load_cohort
from fedgraft.client.data.cohorts.splits import assign
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.enrolment.pseudonyms import keep_key, place_of
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.training.few_shot import shots
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import SplitSpec
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.compare.running.folds import Fold, deal
from fedgraft.simulations.engines.run import OPEN

CLASSES = ("no", "yes", "maybe")
FOLDS = 3


class Case(NamedTuple):
    """An image or a row: its label, "" for none, what it shows, and the name it has besides (a SOP instance UID)."""

    label: str
    value: int
    name: int


Patients = Mapping[str, Sequence[Case]]

CASES = st.lists(
    st.builds(Case, st.sampled_from((*CLASSES, "")), st.integers(1, 250), st.integers(0, 6)), min_size=1, max_size=3
)
COHORTS = st.dictionaries(st.text("abcdef0123456789", min_size=1, max_size=5), CASES, min_size=2, max_size=9)


def a_study(kind: str, seed: int = 0, *, private: bool = True) -> Study:
    terms = {"private": {"noise_multiplier": 1.0, "sample_rate": 0.5}, "fixed_norm_stats": True} if private else {}
    table = kind == "table"
    scale = {"name": "columns", "local": {"kind": "statistics", "of": "columns"}, "aggregate": {"kind": "standardise"}}
    work = {"kind": "gradient", "train": "heads", "steps": 1, **terms}
    train = {"name": "heads", "local": work, "share": "heads", "aggregate": {"kind": "mean"}}
    return parse_study(
        {
            "name": "alone",
            "seed": seed,
            "tasks": [{"name": "cls", "classes": list(CLASSES)}],
            "input": {"kind": "table", "numeric": ["value"]} if table else {"kind": "image", "size": 16},
            "model": {"backbone": "table_linear" if table else "slim_resnet", "weights": None},
            "plan": [scale, train] if table else [train],
        },
        "test",
    )


def write(kind: str, root: Path, patients: Patients) -> CohortSpec:
    """The patients' cases as a hospital has them. Names of cases may be those of other patients' as well."""
    (root / "files").mkdir(parents=True)
    rows = [("id", "file", "cls", "value")]
    for patient, cases in sorted(patients.items()):
        for number, case in enumerate(cases):
            name = f"{patient}_{number}.{'dcm' if kind == 'dicom' else 'png'}"
            rows.append((patient, name, case.label, str(case.value)))
            pixels = np.add.outer(np.arange(16), np.arange(16) * case.value % 97).astype(np.uint8)
            if kind == "images":
                Image.fromarray(pixels).save(root / "files" / name)
            elif kind == "dicom":
                write_dicom(root / "files" / name, patient, pixels, f"1.2.{case.name}")
    table = root / "table.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    if kind == "table":
        return CohortSpec(kind="table", root=table, patient_column="id")
    if kind == "images":
        return CohortSpec(kind="images", root=root / "files", labels=table, patient_column="id")
    return CohortSpec(kind="dicom", root=root / "files", labels=table, join="path", key_column="file")


def write_dicom(path: Path, patient: str, pixels: np.ndarray, sop: str) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = sop
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientID, dataset.SOPClassUID, dataset.SOPInstanceUID = patient, meta.MediaStorageSOPClassUID, sop
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.add_new("PixelData", "OB", pixels.tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)


def a_site(folder: Path, spec: CohortSpec, **changes: Any) -> SiteConfig:
    config = SiteConfig(name="north", cohort=spec, state=folder, cache=folder / "cache", policy=OPEN, **changes)
    keep_key(folder, b"the same key, whoever is there")
    config.write(folder / "site.json")
    return config


def the_cohort(config: SiteConfig, study: Study) -> Cohort:
    return load_cohort(config.name, config.cohort, cohort_request(config, study), place_of(config, study.digest))


def parts(kind: str, patients: Patients, study: Study) -> dict[str, Any]:
    """By patient all that becomes of it at the site: split, folds, and its cases ready for the model."""
    with tempfile.TemporaryDirectory() as name:
        spec = write(kind, Path(name) / "data", patients)
        config = a_site(Path(name) / "site", spec)
        cohort, place = the_cohort(config, study), place_of(config, study.digest)
        pseudonyms = {place.patient(patient): patient for patient in patients}
        found: dict[str, Any] = {patient: {"cases": []} for patient in patients}
        ready = to_float(cohort.inputs, study.input)
        for at, pseudonym in enumerate(cohort.patients):
            case = (ready[at].numpy().tobytes(), int(cohort.targets["cls"][at]))
            found[pseudonyms[pseudonym]]["cases"].append(case)
        splits_of(cohort, pseudonyms, found, "split")
        for number in range(FOLDS):
            deal(study, config.state, Fold(number, FOLDS))
            splits_of(the_cohort(config, study), pseudonyms, found, f"fold {number}")
    return found


def splits_of(cohort: Cohort, pseudonyms: Mapping[str, str], found: dict[str, Any], name: str) -> None:
    for split, at in cohort.splits.items():
        for case in at.tolist():
            found[pseudonyms[cohort.patients[case]]].setdefault(name, set()).add(split)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "images", "dicom"])
@given(COHORTS, CASES, st.integers(0, 1000))
@settings(max_examples=12, deadline=None, phases=(Phase.generate,))  # each example reads files: none is made smaller
def test_one_patient_more_or_less_changes_nobody_else(kind, patients, cases, seed):
    study = a_study(kind, seed)
    whole = parts(kind, patients, study)
    gone = sorted(patients)[seed % len(patients)]
    fewer = parts(kind, {name: own for name, own in patients.items() if name != gone}, study)
    more = parts(kind, {**patients, "~ new": cases}, study)
    assert fewer == {name: part for name, part in whole.items() if name != gone}
    assert {name: part for name, part in more.items() if name != "~ new"} == whole
    assert all(len(part[name]) == 1 for part in whole.values() for name in part if name != "cases")


def test_of_a_thousand_others_nobody_moves_and_dealing_out_moves_hundreds():
    """The attack that was found: by rank within classes, one patient who goes takes others along."""
    patients = {f"{number:04d}": [Case(CLASSES[number % 3], 1, 0)] for number in range(1001)}
    fewer = {name: own for name, own in patients.items() if name != "0500"}
    for private, least, most in ((True, 0, 0), (False, 50, 1000)):
        study = a_study("table", private=private)
        both = [parts("table", own, study) for own in (patients, fewer)]
        moved = sum(both[0][name]["split"] != both[1][name]["split"] for name in fewer)
        assert least <= moved <= most
        assert sum(both[0][name]["fold 0"] != both[1][name]["fold 0"] for name in fewer) <= most


def test_over_all_folds_each_is_tested_once(tmp_path: Path) -> None:
    patients = {f"{number}": [Case(CLASSES[number % 3], 1, 0)] for number in range(60)}
    for private in (True, False):
        found = parts("table", patients, a_study("table", private=private))
        tested = [sum(part[f"fold {number}"] == {"test"} for number in range(FOLDS)) for part in found.values()]
        assert tested == [1] * 60
        assert any(part["fold 0"] == {"val"} for part in found.values())


STRICT = SitePolicy(min_patients=1)


@pytest.mark.parametrize(
    ("policy", "private", "rule"),
    [
        (OPEN, False, "stratified"),
        (OPEN, True, "independent"),
        (STRICT, False, "independent"),
        (SitePolicy(allow_non_dp=True, metrics="noised"), False, "independent"),
        (SitePolicy(allow_non_dp=True, metrics="suppressed"), False, "stratified"),
    ],
)
def test_the_study_and_the_policy_decide_and_the_file_says_how(tmp_path, policy, private, rule):
    patients = {f"{number}": [Case(CLASSES[number % 3], 1, 0)] for number in range(60)}
    spec = write("table", tmp_path / "data", patients)
    config = a_site(tmp_path / "site", spec).model_copy(update={"policy": policy})
    cohort = the_cohort(config, a_study("table", private=private))
    assert cohort.split_rule == rule
    assert (tmp_path / "site" / "splits.csv").read_text().splitlines()[0].endswith(f", {rule}")


def test_a_site_may_have_its_patients_stand_alone_for_every_study(tmp_path: Path) -> None:
    patients = {f"{number}": [Case("no", 1, 0)] for number in range(20)}
    spec = write("table", tmp_path / "data", patients).model_copy(update={"split": "independent"})
    assert the_cohort(a_site(tmp_path / "site", spec), a_study("table", private=False)).split_rule == "independent"


@pytest.mark.parametrize("change", [{"train_cases": 5}, {"train_labels": "shuffled"}])
def test_what_picks_or_gives_by_who_else_is_there_is_refused_where_privacy_is_asked_for(tmp_path, change):
    patients = {f"{number}": [Case(CLASSES[number % 3], 1, 0)] for number in range(60)}
    spec = write("table", tmp_path / "data", patients).model_copy(update=change)
    config = a_site(tmp_path / "site", spec)
    with pytest.raises(DataError, match=f"{next(iter(change))}.*differential privacy cannot count"):
        the_cohort(config, a_study("table"))
    the_cohort(a_site(tmp_path / "other", spec), a_study("table", private=False))


def test_hidden_labels_are_hidden_by_each_patients_own_split(tmp_path: Path) -> None:
    patients = {f"{number}": [Case(CLASSES[number % 3], 1, 0)] for number in range(60)}
    spec = write("table", tmp_path / "data", patients).model_copy(update={"train_labels": "hidden"})
    cohort = the_cohort(a_site(tmp_path / "site", spec), a_study("table"))
    assert (cohort.targets["cls"][cohort.splits["train"]] == -1).all()
    assert (cohort.targets["cls"][cohort.splits["test"]] >= 0).all()


@given(st.integers(0, 1000), st.integers(0, 59), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_a_patient_who_goes_lets_one_other_shot_of_the_class_slip_in(seed, gone, count):
    """So many shots of each class cannot mean less; all that were drawn stay."""
    patients = tuple(str(number // 2) for number in range(120))
    labels = torch.arange(120) // 2 % 3
    nothing = torch.arange(0)
    splits = {"train": torch.arange(120), "val": nothing, "test": nothing}
    whole = Cohort("north", torch.zeros(120, 1), {"cls": labels}, patients, splits, (), {})
    kept = [case for case in range(120) if patients[case] != str(gone)]
    fewer = Cohort(
        "north",
        torch.zeros(len(kept), 1),
        {"cls": labels[kept]},
        tuple(patients[case] for case in kept),
        {**splits, "train": torch.arange(len(kept))},
        (),
        {},
    )
    task = a_study("table").tasks[0]
    before = set(shots(whole, task, count, seed).tolist())
    after = {kept[case] for case in shots(fewer, task, count, seed).tolist()}
    own = {case for case in before if patients[case] == str(gone)}
    assert before - own <= after
    assert len(after - before) == len(own)


def test_dealing_out_is_as_it_was_where_nothing_private_follows() -> None:
    labels = {f"{number}": number % 3 for number in range(200)}
    splits = assign(labels, {}, SplitSpec(), 3)
    counts = [sum(split == name for split in splits.values()) for name in ("train", "val", "test")]
    assert counts == [120, 30, 50]
