"""A coordinator asks what a site could supply, again and again and otherwise, and finds no patient in the answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedgraft.client.agreement import answering
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.app import forget
from fedgraft.common.base.errors import DataError
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.answers import SiteAnswer, TaskSupply
from fedgraft.common.protocol.instructions import Code, Hello, Refusal
from helpers.asked import BANDS, PRIVATE, SCALE, a_site, a_study, patients, write

STUDY = a_study()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    forget()


def answered(site, study=STUDY) -> SiteAnswer:
    found = site.supplies(study)
    assert isinstance(found, SiteAnswer), found
    return found


def test_a_site_says_nothing_unless_its_policy_lets_it(tmp_path) -> None:
    site = a_site(tmp_path / "north", patients(benign=30, malignant=20), SitePolicy())
    refusal = site.supplies(STUDY)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.site) == (Code.POLICY, "north")
    assert [(line.kind, line.words["code"]) for line in site.log.entries()] == [("refusal", "policy")]


def test_what_leaves_stands_in_the_egress_log_before(tmp_path) -> None:
    site = a_site(tmp_path / "north", patients(benign=30, malignant=20))
    answer = answered(site)
    (line,) = site.log.entries()
    assert (line.kind, line.study, line.words) == ("answer", STUDY.digest, answer.plain())
    assert "agreement of the policy" in line.why


def test_nine_patients_are_not_told_from_none(tmp_path) -> None:
    few = answered(a_site(tmp_path / "few", patients(benign=30, malignant=9)))
    none = answered(a_site(tmp_path / "none", patients(benign=30)))
    ten = answered(a_site(tmp_path / "ten", patients(benign=30, malignant=10)))
    assert few.tasks == none.tasks
    assert few.tasks["cls"].words == {"benign": (30, 49)}
    assert ten.tasks["cls"].words == {"benign": (30, 49), "malignant": (10, 14)}


def test_patients_are_counted_and_not_their_rows(tmp_path) -> None:
    rows = patients(benign=30) + [("one", "malignant")] * 25
    assert answered(a_site(tmp_path / "north", rows)).tasks["cls"].words == {"benign": (30, 49)}


def test_other_classes_move_no_number(tmp_path) -> None:
    """Of 20 patients whom `all others` makes benign one has a rare word: named as a class, it would leave 19."""
    rows = patients(malignant=30, cyst=19, lupus=1)
    site = a_site(tmp_path / "north", rows, label_map={"cls": {"all others": "benign"}})
    asked = [
        ("benign", "malignant"),
        ("benign", "malignant", "lupus"),
        ("benign", "malignant", "cyst"),
        ("benign", "lupus"),
        ("benign", "cyst", "lupus", "malignant"),
    ]
    told = [answered(site, a_study(*classes)).tasks["cls"] for classes in asked]
    assert all(one == told[0] for one in told)
    assert told[0].words == {"malignant": (30, 49), "cyst": (15, 19)}
    assert told[0].rest == (0, 9)


def test_other_columns_do_not_move_classes(tmp_path) -> None:
    """Only complete rows are used, and one patient lacks a column: a study with it would have 19, another 20."""
    site = a_site(tmp_path / "north", [], complete_cases=True)
    table = tmp_path / "north" / "table.csv"
    write(table, patients(benign=20, malignant=30))
    table.write_text(table.read_text().replace("benign0,benign,30,50,", "benign0,benign,30,,"))
    with_dose = answered(site)
    without = a_study(input={"kind": "table", "numeric": ["age"], "standardise": {"age": SCALE}})
    assert answered(site, without).tasks == with_dose.tasks
    assert with_dose.tasks["cls"].words["benign"] == (20, 29)


def test_which_rare_labels_go_together_is_not_told(tmp_path) -> None:
    """Eleven patients have one of two rare labels, and eleven are not known for either: neither is told of the two."""
    columns = {f"cls.{label}": label for label in "abc"}
    site, table = a_site(tmp_path / "north", [], label_columns=columns), tmp_path / "north" / "table.csv"
    rows = [(1, 0, 0)] * 6 + [(0, 1, 0)] * 5 + [("", "", 1)] * 11 + [(0, 0, 0)] * 30
    lines = [f"p{at},40,50,{a},{b},{c}" for at, (a, b, c) in enumerate(rows)]
    table.write_text("\n".join(["PatientID,age,dose,a,b,c", *lines]) + "\n")

    def supply_of(*labels: str) -> TaskSupply:
        task = {"name": "cls", "kind": "multilabel", "labels": list(labels)}
        return answered(site, a_study(tasks=[task])).tasks["cls"]

    one, two, three = supply_of("a"), supply_of("a", "b"), supply_of("a", "b", "c")
    assert (one.rest, one.unknown) == (two.rest, two.unknown) == (three.rest, three.unknown) == ((0, 69), (0, 69))
    assert (two.words, three.words) == ({}, {"c": (10, 14)})


def test_categories_of_a_study_move_no_number(tmp_path) -> None:
    site = a_site(tmp_path / "north", [])
    table = tmp_path / "north" / "table.csv"
    write(table, patients(benign=30, malignant=30))
    rows = table.read_text().splitlines()
    odd = [f"{row},{'F' if at % 2 else 'M'}" for at, row in enumerate(rows[1:-11])] + [f"{row},X" for row in rows[-11:]]
    table.write_text("\n".join([f"{rows[0]},sex", *odd]) + "\n")
    answers = [
        answered(site, a_study(input={"kind": "table", "categorical": {"sex": list(words)}}))
        for words in (("F", "M"), ("F", "X"), ("F",))
    ]
    assert all(answer.missing == {"sex": (0, 9)} for answer in answers)
    assert all(answer.facts["sex"]["F"] == (20, 29) for answer in answers)
    assert [set(answer.facts["sex"]) for answer in answers] == [{"F", "M"}, {"F", "X"}, {"F"}]


@pytest.mark.slow
def test_the_price_does_not_follow_the_split(tmp_path) -> None:
    """Delta follows from a number of patients: were it of those who train, many splits would tell it exactly."""
    site = a_site(tmp_path / "north", patients(benign=900, malignant=600))
    splits = [{"train": share, "val": 0.0, "test": 1 - share} for share in (0.05, 0.4, 0.9)]
    prices = [answered(site, a_study(plan=PRIVATE, split=split)).price for split in splits]
    assert prices[0].epsilon > 0
    assert len(set(prices)) == 1
    assert not (site.state / "public_counts.json").exists(), "asking has fixed the site's public number"


def test_few_answers_differ(tmp_path) -> None:
    """Somebody who asks every day would see who came. The same is told as often as it is asked."""
    site, table = a_site(tmp_path / "north", []), tmp_path / "north" / "table.csv"
    for day in range(BANDS.agreement_answers):
        write(table, patients(benign=20 + 20 * day, malignant=30))
        answered(site)
    write(table, patients(benign=150, malignant=30))
    refusal = site.supplies(STUDY)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.POLICY
    write(table, patients(benign=21, malignant=30))  # another patient, but the same bands as on the first day
    assert answered(site).tasks["cls"].words["benign"] == (20, 29)


def test_that_nothing_can_be_read_is_an_answer_too(tmp_path) -> None:
    """One patient's word among numbers is what a refusal tells: column by column, somebody would look for them all."""
    site, table = a_site(tmp_path / "north", []), tmp_path / "north" / "table.csv"
    write(table, patients(benign=30, malignant=30))
    first, *rows = table.read_text().splitlines()
    last = rows.pop()
    table.write_text(
        "\n".join([f"{first},a,b,c,d,e", *(f"{row},1,1,1,1,1" for row in rows), f"{last},x,1,x,x,1"]) + "\n"
    )
    asked = [a_study(input={"kind": "table", "numeric": [name]}) for name in "abcde"]
    told = [found.code if isinstance(found := site.supplies(study), Refusal) else None for study in asked]
    assert told == [Code.BAD_DATA, None, Code.BAD_DATA, Code.POLICY, Code.POLICY]
    again = site.supplies(asked[0])
    assert isinstance(again, Refusal)
    assert again.code is Code.BAD_DATA


def test_a_site_that_has_forgotten_what_it_answered_answers_no_more(tmp_path) -> None:
    site = a_site(tmp_path / "north", patients(benign=20, malignant=30))
    answered(site)
    (site.state / "answered.json").unlink()
    site.restart()
    refusal = site.supplies(STUDY)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.LEDGER


def test_no_column_is_counted_that_only_the_coordinator_names(tmp_path) -> None:
    site = a_site(tmp_path / "north", patients(yes=30, no=30))
    study = a_study("yes", "no", task="secret")
    told = answered(site, study).tasks["secret"]
    assert (told.silent, dict(told.words)) == ("not_named", {})


@pytest.mark.parametrize("error", [OSError(5, "/data/DOE"), KeyError("DOE"), DataError("/data/DOE: no such file")])
def test_no_text_of_an_error_leaves(tmp_path, monkeypatch, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    site = a_site(tmp_path / "north", patients(benign=30, malignant=30))
    monkeypatch.setattr(answering, "read_cohort", fails)
    records = site.sends(wire.ASK, wire.pack_hello(Hello(STUDY.to_json()))).content
    assert "DOE" not in repr([list(record.values()) for record in records.values()])
    assert isinstance(refusal := wire.unpack_answer(records), Refusal)
    assert refusal.code in (Code.FAILED, Code.BAD_DATA)


def test_images_of_nobody_are_no_patients(tmp_path) -> None:
    site = a_site(tmp_path / "north", patients(benign=30, malignant=30), patient_column=None)
    refusal = site.supplies(STUDY)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.POLICY


def test_who_lets_nothing_out_in_the_open_cannot_answer() -> None:
    with pytest.raises(ValueError, match="agreement lets counts leave in the open"):
        SitePolicy(secure_aggregation_only=True, agreement="bands")
