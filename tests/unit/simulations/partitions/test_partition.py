"""One cohort as several hospitals: every case is at one of them, patients stay whole, and the seed decides it all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.cohorts.cohort import CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError, InputError, StudyError
from fedgraft.common.study.inputs import ImageInput, SplitSpec, TableInput
from fedgraft.common.study.tasks import Task
from fedgraft.simulations.partitions.partition import ByDirichlet, ByShards, BySizes, Partition, deal
from fedgraft.simulations.partitions.parts import make_parts
from fedgraft.simulations.phantoms.scenario import Scenario

PEOPLE = {f"p{number:03d}": "abc"[number % 3] for number in range(300)}


def sizes(found: dict[str, str]) -> dict[str, int]:
    return {site: list(found.values()).count(site) for site in sorted(set(found.values()))}


def test_sizes_are_the_shares_and_everybody_is_somewhere():
    found = deal(PEOPLE, BySizes(kind="sizes", shares=(0.5, 0.3, 0.2)), 1)
    assert found.keys() == PEOPLE.keys()
    assert sizes(found) == {"site_1": 150, "site_2": 90, "site_3": 60}
    assert 30 < sum(PEOPLE[who] == "a" for who, site in found.items() if site == "site_1") < 70  # at random


def test_the_seed_decides_and_not_the_order():
    by = ByDirichlet(kind="dirichlet", sites=4, alpha=0.5)
    assert deal(PEOPLE, by, 1) == deal(dict(reversed(PEOPLE.items())), by, 1) != deal(PEOPLE, by, 2)


def shares(found: dict[str, str]) -> np.ndarray:
    """Of each site's patients the share of each class."""
    own = {site: [PEOPLE[who] for who, at in found.items() if at == site] for site in set(found.values())}
    return np.array([[labels.count(label) / len(labels) for label in "abc"] for labels in own.values()])


def test_alpha_says_how_alike_the_sites_are():
    alike = shares(deal(PEOPLE, ByDirichlet(kind="dirichlet", sites=4, alpha=1000), 3))
    apart = shares(deal(PEOPLE, ByDirichlet(kind="dirichlet", sites=4, alpha=0.3), 3))
    assert np.abs(alike - 1 / 3).max() < 0.08
    assert apart.std(axis=0).mean() > 3 * alike.std(axis=0).mean()


def test_shards_give_every_site_as_many_patients_of_few_classes():
    found = deal(PEOPLE, ByShards(kind="shards", sites=6, per_site=1), 2)
    assert set(sizes(found).values()) == {50}
    assert ((shares(found) > 0).sum(axis=1) == 1).all()
    mixed = deal(PEOPLE, ByShards(kind="shards", sites=6, per_site=10), 2)
    assert (shares(mixed) > 0).all()


def test_a_site_for_whom_nobody_is_left_is_refused():
    with pytest.raises(InputError, match="nobody is left for"):
        deal({"p1": "a", "p2": "b"}, BySizes(kind="sizes", shares=(0.5, 0.25, 0.25)), 0)


def table(folder: Path, delimiter: str = ",") -> CohortSpec:
    with (folder / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["who", "cls", "hospital", "x"])
        for at in range(60):
            writer.writerow([f"P{at // 2}", "ab"[at // 2 % 2], ["St. Mary", "north"][at // 2 % 3 == 0], f"{at},5"])
    return CohortSpec(kind="table", root=folder / "all.csv", patient_column="who")


TASK = Task(classes=("a", "b"))


COLUMNS = TableInput(numeric=("x",))


def load(spec: CohortSpec, folder: Path, inputs=COLUMNS):
    wanted = CohortRequest([TASK], inputs, SplitSpec(), 0)
    return load_cohort("s", spec, wanted, Place(folder / "state", folder / "cache", b"secret"))


def parts(folder: Path, spec: CohortSpec, by, seed: int = 5):
    return make_parts(Partition(cohort=spec, by=by), seed, folder / "parts")


def test_a_column_names_the_sites_and_every_row_is_at_one(tmp_path):
    cohorts, record = parts(tmp_path, table(tmp_path, ";"), {"kind": "column", "column": "hospital"})
    values = {site: sorted(load(spec, tmp_path / site).inputs[:, 0].tolist()) for site, spec in cohorts.items()}
    assert set(values) == {"St_Mary", "north"}
    assert sorted(values["north"] + values["St_Mary"]) == [at + 0.5 for at in range(60)]
    assert values["north"] == [at + 0.5 for at in range(60) if at // 2 % 3 == 0]
    assert record["sites"]["north"] == {"cases": 20, "patients": 10, "labels": {"north": 20}}


def test_patients_stay_whole_and_what_was_dealt_is_written_down(tmp_path):
    by = {"kind": "dirichlet", "sites": 3, "alpha": 1.0, "label": "cls"}
    cohorts, record = parts(tmp_path, table(tmp_path, ";"), by)
    people = {site: set(load(spec, tmp_path / site).patients) for site, spec in cohorts.items()}
    assert sum(map(len, people.values())) == 30 == len(set.union(*people.values()))
    assert (record["seed"], record["by"]["alpha"]) == (5, 1.0)
    (written,) = (tmp_path / "parts").glob("*/partition.json")
    assert json.loads(written.read_text()) == record
    assert written.parent.stat().st_mode & 0o077 == 0
    again, same = parts(tmp_path, table(tmp_path, ";"), by)
    assert (again, same) == (cohorts, record)
    assert parts(tmp_path, table(tmp_path, ";"), by, seed=6)[1]["digest"] != record["digest"]


def test_images_in_folders_by_class_are_listed_site_by_site(tmp_path):
    for at in range(12):
        (tmp_path / "im" / "ab"[at % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * at, np.uint8)).save(tmp_path / "im" / "ab"[at % 2] / f"{at}.png")
    spec = CohortSpec(kind="images", root=tmp_path / "im")
    cohorts, record = parts(tmp_path, spec, {"kind": "shards", "sites": 2, "per_site": 1})
    found = {site: load(one, tmp_path / site, ImageInput(size=16)) for site, one in cohorts.items()}
    assert sorted(record["sites"][site]["labels"].keys() for site in cohorts) == [{"a": 6}.keys(), {"b": 6}.keys()]
    assert {len(cohort.inputs) for cohort in found.values()} == {6}
    assert sorted({label for cohort in found.values() for label in cohort.targets["cls"].tolist()}) == [0, 1]
    assert all({one.reason: one.count for one in cohort.problems} == {"not_listed": 6} for cohort in found.values())


def test_a_labels_table_whose_rows_are_images_keeps_patients_whole(tmp_path):
    (tmp_path / "im").mkdir()
    rows = [f"{at}.png,{'ab'[at % 2]},P{at // 3}" for at in range(12)]
    for at in range(12):
        Image.fromarray(np.full((8, 8), 10 * at, np.uint8)).save(tmp_path / "im" / f"{at}.png")
    (tmp_path / "l.csv").write_text("\n".join(["path,cls,who", *rows]) + "\n")
    spec = CohortSpec(kind="images", root=tmp_path / "im", labels=tmp_path / "l.csv", patient_column="who")
    cohorts, _ = parts(tmp_path, spec, {"kind": "sizes", "shares": [0.5, 0.5]})
    people = [set(load(one, tmp_path / site, ImageInput(size=16)).patients) for site, one in cohorts.items()]
    assert [len(own) for own in people] == [2, 2]
    assert not people[0] & people[1]


def test_a_benchmark_keeps_its_splits_at_every_site(tmp_path):
    arrays = {}
    for split, count in {"train": 40, "val": 20, "test": 20}.items():
        arrays[f"{split}_images"] = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1).repeat(16, 1).repeat(16, 2)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).reshape(-1, 1)
    np.savez(tmp_path / "d.npz", **arrays)
    spec = CohortSpec(kind="npz", root=tmp_path / "d.npz")
    cohorts, record = parts(tmp_path, spec, {"kind": "dirichlet", "sites": 3, "alpha": 2.0})
    found = [load(one, tmp_path / site, ImageInput(size=16)) for site, one in cohorts.items()]
    assert {split: sum(len(one.splits[split]) for one in found) for split in ("train", "val", "test")} == {
        "train": 40,
        "val": 20,
        "test": 20,
    }
    assert sum(one["cases"] for one in record["sites"].values()) == 80
    assert all(one.split_rule == "own" for one in found)


def test_what_cannot_be_shared_out_says_why(tmp_path):
    spec = table(tmp_path)
    with pytest.raises(DataError, match="has no column for the label or the site"):
        parts(tmp_path, spec, {"kind": "column", "column": "clinic"})
    (tmp_path / "all.csv").write_text("who,hospital\nP1,north\nP2,\nP3,North\n")
    with pytest.raises(DataError, match=r"all\.csv: 1 rows have nothing in column 'hospital'"):
        parts(tmp_path, spec, {"kind": "column", "column": "hospital"})
    (tmp_path / "all.csv").write_text("who,hospital\nP1,north\nP3,North\n")
    with pytest.raises(InputError, match="'north' and 'North' would be one site"):
        parts(tmp_path, spec, {"kind": "column", "column": "hospital"})
    with pytest.raises(InputError, match=r"cohort of kind dicom in .* cannot be shared out"):
        parts(tmp_path, CohortSpec(kind="dicom", root=tmp_path), {"kind": "sizes", "shares": [1.0]})


def test_a_scenario_has_sites_or_a_partition():
    shared = {"cohort": {"kind": "table", "root": "all.csv"}, "by": {"kind": "sizes", "shares": [0.6, 0.4]}}
    assert Scenario.parse({"name": "x", "partition": shared}).partition.cohort.root.is_absolute()
    for wrong in ({}, {"partition": shared, "sites": [{"name": "a", "table": {"patients": 9}}]}):
        with pytest.raises(StudyError, match="give `sites`, or one cohort as `partition`"):
            Scenario.parse({"name": "x"} | wrong)
    with pytest.raises(StudyError, match=r"add up to 0\.9, not 1"):
        Scenario.parse({"name": "x", "partition": shared | {"by": {"kind": "sizes", "shares": [0.5, 0.4]}}})
