"""A patient is a patient: where nothing says whose an image is, an image is never protected in a patient's name."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from conftest import Command, MakeStudy, write_images
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.files import read_json
from fedgraft.common.study.study import Study
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.engines.run import Hospitals, simulate

IMAGES, EACH = 120, 5
STRICT = SitePolicy(min_patients=1, epsilon_per_study=6.0)


@pytest.fixture
def clinic(tmp_path: Path) -> CohortSpec:
    """24 patients with five images each, and a table that says so to whoever reads the column."""
    root = tmp_path / "clinic"
    write_images(root, 4, IMAGES)
    with (root / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (root / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "cls", "patient"])
        writer.writeheader()
        writer.writerows(row | {"patient": f"P{int(row['patient'][1:]) // EACH}"} for row in rows)
    return CohortSpec(kind="images", root=root, labels=root / "images.csv")


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    local = {"steps": 2, "lr": 0.01, "private": {"epsilon": 5.0, "sample_rate": 0.5}}
    return make_study(method={"name": "linear_probe", "rounds": 1, "local": local}, evaluate={"every": 0})


def carried_out(study: Study, hospitals: Hospitals, clinic: CohortSpec, policy: SitePolicy, out: Path) -> Path:
    """A run in which the clinic takes part with the others; its own folder."""
    sites = replace(hospitals, cohorts={**hospitals.cohorts, "clinic": clinic}, policies={"clinic": policy})
    return simulate(study, sites, out) / "sites" / "clinic"


@pytest.mark.slow
def test_a_forgotten_patient_column_keeps_a_site_out_of_private_work(study, hospitals, clinic, tmp_path: Path) -> None:
    folder = carried_out(study, hospitals, clinic, STRICT, tmp_path / "run")
    assert read_json(tmp_path / "run" / "result.json")["headline"] == "4 of 5 sites; missing: clinic, policy"
    assert "no_patient_column" in (folder / "site.log").read_text()
    assert not Held.of(folder).exists()


def test_with_the_column_patients_are_counted_and_charged(study, hospitals, clinic, tmp_path: Path) -> None:
    told = clinic.model_copy(update={"patient_column": "patient"})
    (row,) = Held.of(carried_out(study, hospitals, told, STRICT, tmp_path / "run")).open(8.0).rows()
    assert row.facts.unit == "patient"
    assert 8 <= row.facts.patients <= 16  # half of 24, by chance


@pytest.mark.slow
def test_a_site_that_says_image_has_images_and_its_ledger_says_so(study, hospitals, clinic, tmp_path: Path) -> None:
    """Although the study asks for patients: nobody here knows any."""
    policy = STRICT.model_copy(update={"unit": "image"})
    (row,) = Held.of(carried_out(study, hospitals, clinic, policy, tmp_path / "run")).open(8.0).rows()
    assert row.facts.unit == "image"
    assert read_json(tmp_path / "run" / "result.json")["privacy"]["clinic"]["unit"] == "image"
    told = clinic.model_copy(update={"patient_column": "patient"})
    (row,) = Held.of(carried_out(study, hospitals, told, policy, tmp_path / "told")).open(8.0).rows()
    assert row.facts.unit == "patient"  # the study asks for it, and here it is known


def test_noised_metrics_are_not_released_in_a_patients_name_either(make_study: MakeStudy, tmp_path: Path) -> None:
    policy = STRICT.model_copy(update={"allow_non_dp": True, "metrics": "noised"})
    guard = PrivacyGuard(make_study(), policy, tmp_path, 120, patients_known=False)
    with pytest.raises(Refused) as refused:
        guard.charge_metrics(5, "0" * 64)
    assert refused.value.why == "no_patient_column"
    assert not Held.of(tmp_path).exists()
    assert list(guard.metrics_events()) == []
    known = PrivacyGuard(make_study(), policy, tmp_path, 120)
    assert known.charge_metrics(5, "0" * 64) > 0


def test_public_source_data_are_nobodys(make_study: MakeStudy, tmp_path: Path) -> None:
    policy = STRICT.model_copy(update={"metrics": "noised"})
    guard = PrivacyGuard(make_study(), policy, tmp_path, 120, is_source=True, patients_known=False)
    assert guard.charge_metrics(5, "0" * 64) > 0


@pytest.mark.parametrize(
    "case",
    [
        ({"patient_column": "patient"}, {}, "a patient: all images with the same patient"),
        ({}, {"unit": "image"}, "a single image, whoever it is of"),
        ({}, {}, "a patient: a single image, since nothing says whose it is"),
    ],
)
@pytest.mark.parametrize("metrics", ["none", "exact"])
def test_review_says_what_a_unit_is_and_how_many_there_are(
    command: Command, study: Study, clinic: CohortSpec, tmp_path: Path, case: tuple, metrics: str
) -> None:
    cohort, policy, words = case
    home = tmp_path / "home"
    home.mkdir()
    spec = clinic.model_dump(mode="json") | cohort
    rules = {"min_patients": 1, "epsilon_per_study": 6.0, "metrics": metrics} | policy
    (home / "site.yaml").write_text(yaml.safe_dump({"name": "clinic", "cohort": spec, "policy": rules}))
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    code, out, _ = command("site", "review", "study.yaml", "--home", home)
    assert code == 0
    assert f"one unit is {words}" in out
    whole = (24, 30) if cohort else (120, 150)
    assert (f"there are {whole[0]} of them" if metrics == "exact" else f"there are up to {whole[1]} of them") in out
    assert "patients are split each by that patient alone" in out
    refused = not cohort and not policy
    assert ("This site's policy refuses the study: no_patient_column." in out) == refused
    code, out, _ = command("site", "check", "study.yaml", "--home", home, "--part", "policy", "--json")
    assert (code, "no_patient_column" in out) == (int(refused), refused)
    data = json.loads(command("site", "review", "study.yaml", "--home", home, "--json")[1])["data"]
    assert data["unit"] == ("image" if policy else "patient")


def test_join_names_the_column_or_says_what_follows_without(command: Command, clinic: CohortSpec, tmp_path: Path):
    kits = tmp_path / "kits"
    content = {"name": "trial", "server": {"host": "fl.example.org"}, "sites": ["north", "south"]}
    Authority(kits).provision(Consortium.model_validate(content))
    place = ("--data", clinic.root, "--kind", "images", "--labels", clinic.labels)
    for name, more in {"north": ("--patient-column", "patient"), "south": ()}.items():
        kit = ("site", "join", kits / f"{name}.zip", "--code-file", kits / f"{name}.code")
        code, out, err = command(*kit, *place, *more, "--home", tmp_path / name)
        assert code == 0, err
        column = read_config(tmp_path / name / "site.yaml").cohort.patient_column
        assert column == (more[1] if more else None)
        assert ("Nothing says whose image" in out + err) == (not more)
