"""Figures by subgroup and conformal sets of whole runs, against a naive twin that counts case by case."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.data.cohorts.cohort import load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.governance.review import in_words, review
from fedgraft.client.governance.verdict import judge
from fedgraft.common.base.files import load_tensors
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study
from fedgraft.server.dossier.document import as_markdown
from fedgraft.server.dossier.evidence import Evidence
from fedgraft.server.dossier.write import dossier_of
from fedgraft.server.report.history import read_run
from fedgraft.server.report.page import render
from fedgraft.server.report.subgroups import by_attribute
from fedgraft.simulations.engines.run import Hospitals, opened
from helpers.simulated import simulate
from helpers.tables import head, sgd, study

pytestmark = pytest.mark.slow

ASKED = [{"name": "sex", "values": ["female", "male"]}, {"name": "age", "bands": [0, 40, 65, 120]}]
WORDS = {"female": "f", "male": "m"}
BANDS = {"0 to under 40": (0, 40), "40 to under 65": (40, 65), "65 to under 120": (65, 120)}
CASES = {"east": 300, "north": 300, "west": 240}


def hospitals(root: Path, **policies: Any) -> Hospitals:
    """Three tables with sex and age, whose men are harder to tell apart; sex is called otherwise than in the study."""
    cohorts = {}
    for number, (name, count) in enumerate(CASES.items()):
        rng = np.random.default_rng(number)
        label = (rng.uniform(size=count) < 0.4).astype(int)
        sex, age = rng.choice(["f", "m", "x"], p=[0.4, 0.4, 0.2], size=count), rng.integers(18, 95, count)
        x = rng.normal(size=(count, 2)) * np.where(sex == "m", 4.0, 1.0)[:, None] + np.outer(label, [2.0, 1.0])
        rows = [f"p{i},{'ab'[label[i]]},{x[i, 0]:.6f},{x[i, 1]:.6f},{sex[i]},{age[i]}" for i in range(count)]
        (root / name).mkdir(parents=True)
        path = root / name / "table.csv"
        path.write_text("\n".join(["PatientID,cls,one,two,Geschlecht,age", *rows]) + "\n")
        cohorts[name] = CohortSpec(
            kind="table",
            root=path,
            patient_column="PatientID",
            subgroup_columns={"sex": "Geschlecht"},
            subgroup_map={"sex": {word: value for value, word in WORDS.items()}},
        )
    return Hospitals(cohorts, policies=policies)


def asking(**more: Any) -> Study:
    base = {
        "split": {"train": 0.5, "val": 0.1, "test": 0.4},
        "evaluate": {"every": 0, "subgroups": ASKED, "conformal": 0.8},
    }
    return study(
        {"name": "train", "rounds": 2, "local": sgd(), "share": "all", "aggregate": {"kind": "mean"}}, **(base | more)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """East shows exact figures, north those of one attribute alone, west none by subgroup."""
    root = tmp_path_factory.mktemp("subgroups")
    asked = asking()
    open_ = opened(asked)
    policies = {
        "north": open_.model_copy(update={"subgroups": {"sex": ("female", "male"), "age": (0.0, 41.0, 120.0)}}),
        "west": open_.model_copy(update={"subgroups": {}}),
    }
    return simulate(asked, hospitals(root / "data", **policies), root / "run")


def subgroups(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())["subgroups"]["cls"]


def cases(run: Path, site: str, split: str = "test") -> list[tuple[dict[str, str], float, int]]:
    """By case of a site its row of the table, its log-odds by the saved model, and the class."""
    config = read_config(run / "sites" / site / "site.json")
    asked = Study.read(run / "study.yaml")
    cohort = load_cohort(site, config.cohort, cohort_request(config, asked), place_of(config, asked.digest))
    state = load_tensors(run / "model.safetensors")
    (mean,), (std,) = ([state[key] for key in state if key.endswith(end)] for end in (".mean", ".std"))
    with config.cohort.root.open() as file:
        rows = list(csv.DictReader(file))
    found = []
    for at in cohort.splits[split].tolist():
        x = (np.array([float(rows[at]["one"]), float(rows[at]["two"])]) - mean) / std
        logits = np.append(x, 1.0) @ head(state)
        found.append((rows[at], float(logits[1] - logits[0]), "ab".index(rows[at]["cls"])))
    return found


def in_group(row: dict[str, str], attribute: str, group: str) -> bool:
    if attribute == "sex":
        return row["Geschlecht"] == WORDS[group]
    low, high = BANDS[group]
    return low <= int(row["age"]) < high


def naive(own: list[tuple[dict[str, str], float, int]]) -> dict[str, float]:
    """Accuracy and AUROC, pair by pair."""
    positive = [score for _, score, label in own if label]
    negative = [score for _, score, label in own if not label]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    right = sum((score > 0) == bool(label) for _, score, label in own)
    return {"n": len(own), "accuracy": right / len(own), "auroc": wins / (len(positive) * len(negative))}


def test_a_naive_twin_finds_the_same_figures(run: Path) -> None:
    found = subgroups(run)
    of_site = {site: cases(run, site) for site in ("east", "north")}
    for attribute, groups in {"sex": WORDS, "age": BANDS}.items():
        sites = ("east", "north") if attribute == "sex" else ("east",)
        assert set(found[attribute]["sites"]) == set(sites)
        for group in groups:
            own = {site: [one for one in of_site[site] if in_group(one[0], attribute, group)] for site in sites}
            for site in sites:
                shown = found[attribute]["sites"][site]["groups"][group]["values"]
                assert {key: shown[key] for key in naive(own[site])} == pytest.approx(naive(own[site]), abs=1e-6)
            shown = found[attribute]["pooled"]["groups"][group]["values"]
            together = naive([one for site in sites for one in own[site]])
            assert {key: shown[key] for key in together} == pytest.approx(together, abs=1e-6)


def test_each_site_has_a_threshold_of_its_own_and_coverage_is_counted_on_its_test_cases(run: Path) -> None:
    found = json.loads((run / "result.json").read_text())["conformal"]["cls"][""]
    assert set(found) == set(CASES)
    for site, own in found.items():
        true = [sorted((z if y else -z) for _, z, y in cases(run, site, split)) for split in ("val", "test")]
        lowest = true[0][int(0.2 * (len(true[0]) + 1) + 1e-9) - 1]
        assert own["cases"] == len(true[0])
        assert lowest - 0.011 <= own["log_odds"] <= lowest + 1e-5
        hit = np.mean([score >= own["log_odds"] for score in true[1]])
        assert own["test"]["coverage"] == pytest.approx(hit, abs=1e-9)


def test_men_are_found_to_be_the_worst_and_ages_alike(run: Path) -> None:
    """As the tables were made: men's columns are four times as noisy, and age says nothing."""
    found = subgroups(run)
    gap = found["sex"]["pooled"]["gap"]
    shown = found["sex"]["pooled"]["groups"]
    assert gap["decided"]
    assert (gap["worst"], gap["metric"]) == ("male", "auroc")
    assert gap["value"] == pytest.approx(shown["female"]["values"]["auroc"] - shown["male"]["values"]["auroc"])
    assert not found["age"]["pooled"]["gap"]["decided"]


def test_report_and_dossier_say_it(run: Path) -> None:
    page = render(read_run(run))
    assert "male is the worst" in page
    assert "By age, on test cases" in page
    assert "no group is shown to be worse" in page
    card = as_markdown(dossier_of(Evidence.of(run)))
    assert "male is the worst" in card
    assert "Shown by east, north; other sites show none by sex." in card
    assert "See the model card: figures, conformal sets, subgroups." in card
    assert "For a coverage of 0.8" in card
    assert "Conformal sets, on test cases" in page
    assert "The run has no figures by sex" not in card


def test_under_masks_the_same_sums_open(run: Path, tmp_path: Path) -> None:
    """The coordinator reads groups over three sites; of a site that allows no age, nothing is in the sum."""
    asked = asking(secure_aggregation=True)
    open_ = opened(asked)
    policies = {"west": open_.model_copy(update={"subgroups": {"sex": ("female", "male")}})}
    masked = simulate(asked, hospitals(tmp_path / "data", **policies), tmp_path / "run")
    found = subgroups(masked)
    for attribute, groups in {"sex": WORDS, "age": BANDS}.items():
        sites = CASES if attribute == "sex" else ("east", "north")
        for group in groups:
            own = [one for site in sites for one in cases(masked, site) if in_group(one[0], attribute, group)]
            shown = found[attribute]["pooled"]["groups"][group]["values"]
            assert (shown["n"], shown["accuracy"]) == (len(own), pytest.approx(naive(own)["accuracy"]))
            assert shown["auroc"] == pytest.approx(naive(own)["auroc"], abs=0.002)
        assert found[attribute]["sites"] == {}
    (own,) = json.loads((masked / "result.json").read_text())["conformal"]["cls"][""].values()
    true = [z if y else -z for site in CASES for _, z, y in cases(masked, site)]
    assert own["cases"] == sum(len(cases(masked, site, "val")) for site in CASES)
    assert own["test"]["coverage"] == pytest.approx(np.mean([score >= own["log_odds"] for score in true]), abs=0.02)


def test_noised_and_closed_sites_show_none_and_the_run_says_so(tmp_path: Path) -> None:
    asked = asking()
    closed = {name: opened(asked).model_copy(update={"metrics": "noised"}) for name in ("east", "north")}
    closed["west"] = opened(asked).model_copy(update={"metrics": "none"})
    done = simulate(asked, hospitals(tmp_path / "data", **closed), tmp_path / "run")
    assert all(own["pooled"] == {"groups": {}, "gap": None} for own in subgroups(done).values())
    remarks = [view.remarks for view in by_attribute(read_run(done), "cls")]
    assert [own[0].split(":")[0] for own in remarks] == ["No site shows figures by sex", "No site shows figures by age"]


def test_the_review_at_a_site_says_what_would_leave_by_subgroup_and_why_not(run: Path) -> None:
    asked = Study.read(run / "study.yaml")
    model = initialise(asked).model

    def reviewed(site: str, **policy: Any) -> str:
        config = read_config(run / "sites" / site / "site.json")
        config = config.model_copy(update={"policy": config.policy.model_copy(update=policy)})
        verdict = judge(config, asked, model.tags(), 120)
        return " ".join(in_words(review(asked, model, config, verdict, approved=False) | {"data": None}))

    assert "metrics by sex: those of the test split once, of each group (female, male) with ten patients" in reviewed(
        "east"
    )
    assert "metrics by age: none, since `subgroups` of the policy lists other groups than [0.0, 40.0" in reviewed(
        "north"
    )
    assert "metrics by sex: none, since `subgroups` of the policy does not list it" in reviewed("west")
    assert "metrics by sex: none, since noised counts are not given group by group" in reviewed(
        "east", metrics="noised"
    )
    assert "of the val split once more at the end, for thresholds" in reviewed("east")
