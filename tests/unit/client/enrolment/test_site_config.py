"""A site's own configuration, and the key of its patients' hashes, which is not in it."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import yaml

from fedgraft.client.enrolment.config import (
    SITE_FILE,
    ServerAddress,
    read_config,
    read_site,
    site_home,
)
from fedgraft.client.enrolment.pseudonyms import keep_key, patient_key, place_of
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import DataError, InputError, StudyError
from fedgraft.common.base.files import CONFIGS

COHORT = {"kind": "dicom", "root": "dicom", "labels": "labels.csv"}


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SITE_FILE).write_text(yaml.safe_dump({"name": "north", "cohort": COHORT} | changes))
    return folder / SITE_FILE


def test_relative_paths_count_from_the_file(tmp_path, monkeypatch):
    masks = {"key": "mask.pem", "roster": "roster.json", "identities": {}}
    write(tmp_path / "home", server={"address": "fl.example.org:443", "ca": "ca.pem"}, secure_aggregation=masks)
    monkeypatch.chdir("/")
    config = read_site(tmp_path / "home")
    home = tmp_path / "home"
    assert (config.cohort.root, config.cohort.labels) == (home / "dicom", home / "labels.csv")
    assert (config.state, config.cache) == (home / "state", home / "cache")
    assert config.server is not None
    assert config.server.ca == home / "ca.pem"
    assert config.secure_aggregation is not None
    assert (config.secure_aggregation.key, config.secure_aggregation.roster) == (
        home / "mask.pem",
        home / "roster.json",
    )


def test_absolute_paths_stay_and_a_tilde_is_the_persons_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    path = write(tmp_path / "home", state="~/state", cohort={"kind": "dicom", "root": "/data"})
    config = read_config(path)
    assert (config.cohort.root, config.cohort.labels, config.state) == (Path("/data"), None, tmp_path / "me" / "state")


def test_the_site_that_ships_loads_and_explains_every_key():
    path = CONFIGS / "sites" / "hospital.yaml"
    config = read_config(path)
    assert config.cohort.label_map["cls"]["abscess"] == "ring"
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = {found[1]: line for line in lines if (found := re.match(r"\s*([a-z_]+):", line))}
    wanted = {field for part in (config, config.cohort, config.policy) for field in type(part).model_fields}
    assert wanted == set(keys) - {"cls"}
    assert config.policy == SitePolicy()
    assert [key for key, line in keys.items() if "#" not in line and key != "cls"] == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"secret": "00" * 16}, "secret"),
        ({"devise": "cpu"}, "devise"),
        ({"server": {"address": "example.org", "ca": "ca.pem"}}, "server.address"),
        ({"server": {"address": "example.org:0", "ca": "ca.pem"}}, "server.address"),
        ({"server": {"address": "https://example.org:443", "ca": "ca.pem"}}, "server.address"),
        ({"server": {"address": "example.org:443"}}, "server.ca"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_faults_are_named_with_file_and_key(tmp_path, changes, fault):
    path = write(tmp_path, **changes)
    with pytest.raises(StudyError) as caught:
        read_config(path)
    assert [line.partition(":")[0] for line in caught.value.faults] == [fault]
    assert str(path) in str(caught.value)


def test_addresses_have_a_host_and_a_port():
    name = ServerAddress(address="fl.example.org:8443", ca=Path("ca.pem"))
    number = ServerAddress(address="[::1]:443", ca=Path("ca.pem"))
    assert (name.host, name.port, number.host, number.port) == ("fl.example.org", 8443, "::1", 443)


def test_no_site_yet_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path))
    assert site_home(None) == tmp_path / "site"
    with pytest.raises(InputError, match=r"configs/sites/hospital\.yaml"):
        read_site(site_home(None))


def test_the_key_is_drawn_once_by_the_site_and_is_private(tmp_path):
    first = patient_key(tmp_path / "a")
    assert patient_key(tmp_path / "a") == first
    assert len(first) == 32
    assert patient_key(tmp_path / "b") != first
    (path,) = (tmp_path / "a").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_of_two_processes_that_draw_the_key_at_once_the_first_ones_counts(tmp_path):
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(patient_key(tmp_path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {patient_key(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["patients.key"]
    keep_key(tmp_path, b"x" * 32)
    assert set(found) == {patient_key(tmp_path)}


def test_a_lost_key_is_not_drawn_anew_while_patients_are_split_by_it(tmp_path):
    patient_key(tmp_path)
    (tmp_path / "splits.csv").write_text("# shares")
    (tmp_path / "patients.key").unlink()
    with pytest.raises(DataError, match="backup"):
        patient_key(tmp_path)
    assert not (tmp_path / "patients.key").exists()


@pytest.mark.parametrize("text", ["", "short", "00" * 15, "zz" * 32, "é" * 40])
def test_a_damaged_key_is_refused(tmp_path, text):
    (tmp_path / "patients.key").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        patient_key(tmp_path)


def test_the_place_of_a_site_is_its_folders_and_its_key(tmp_path):
    config = read_config(write(tmp_path))
    place = place_of(config, "d" * 64)
    assert (place.state, place.cache) == (tmp_path / "state", tmp_path / "cache")
    assert place.secret == patient_key(tmp_path / "state")


def test_every_study_may_have_a_place_of_its_own_under_one_key(tmp_path):
    config = read_config(write(tmp_path, many_studies=True))
    one, other = place_of(config, "a" * 64), place_of(config, "b" * 64)
    assert one.state != other.state
    assert one.secret == other.secret == patient_key(tmp_path / "state")
    assert one.state.parent == tmp_path / "state"
