"""What answers mean for a study: each point that a coordinator should know before time and privacy are spent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedgraft.common.agreement.agreement import SupplyAgreement
from fedgraft.common.agreement.supplies import band_in_words
from fedgraft.common.agreement.verdict import verdict
from fedgraft.common.protocol.answers import AskedPrice, Band, SiteAnswer, TaskSupply
from fedgraft.common.protocol.instructions import Code, Refusal
from fedgraft.common.study.study import Study
from helpers.asked import PRIVATE, a_study

STUDY = a_study()
Bands = dict[str, Band]


def an_answer(site: str, words: Bands, **changes: Any) -> SiteAnswer:
    """A site that tells exact numbers of patients by word, and is like others in all else."""
    supply = TaskSupply(words, changes.pop("rest", (0, 0)), (0, 0), changes.pop("others", ""))
    patients = sum(least for least, _ in words.values())
    base = SiteAnswer(
        site, True, False, (patients, patients), {"cls": supply}, {}, {}, AskedPrice(0, 0), "0" * 64, "0" * 64
    )
    return replace(base, **changes)


def points(*answers: SiteAnswer | Refusal, study: Study = STUDY) -> list[tuple[str, str]]:
    found = SupplyAgreement.of(study, {answer.site: answer for answer in answers}, "now")
    return [(point.kind, point.text) for point in verdict(study, found)]


BOTH: Bands = {"benign": (60, 60), "malignant": (40, 40)}


def test_nothing_stands_against_sites_that_have_all() -> None:
    assert points(an_answer("north", BOTH), an_answer("south", BOTH)) == []


def test_a_site_with_one_class_alone() -> None:
    found = points(an_answer("north", BOTH), an_answer("south", {"benign": (50, 50)}), an_answer("west", BOTH))
    assert found == [("against", "south has one class of task 'cls' alone, 'benign': there is nothing to tell apart")]


def test_a_class_that_may_be_there_in_small_numbers_is_no_ground_against_it() -> None:
    few = an_answer("south", {"benign": (50, 69)}, exact=False, patients=(50, 69), rest=(0, 9))
    found = points(an_answer("north", BOTH), few, an_answer("west", BOTH))
    assert [kind for kind, _ in found] == ["note"]
    assert "of each other it has few, or none" in found[0][1]


def test_a_target_that_two_sites_cannot_supply() -> None:
    without = {"cls": TaskSupply(silent="no_column")}
    found = points(
        an_answer("north", BOTH), an_answer("south", {}, tasks=without), an_answer("west", {}, tasks=without)
    )
    assert ("against", "task 'cls' cannot be supplied by 2 sites: south, west") in found
    assert ("note", "south has no column, and no masks, for task 'cls'") in found


def test_a_class_that_nobody_has() -> None:
    only = {"benign": (50, 50)}
    assert ("against", "no site has a patient with 'malignant' of task 'cls'") in points(
        an_answer("north", only), an_answer("south", only)
    )


def test_a_word_that_is_no_class_is_asked_about() -> None:
    """Spelt otherwise at one site, and as another site says it too."""
    found = points(
        an_answer("north", BOTH),
        an_answer("south", BOTH | {"malignent": (20, 20)}),
        an_answer("west", BOTH | {"carcinoma": (30, 30)}),
        an_answer("east", BOTH | {"carcinoma in situ": (30, 30)}),
    )
    texts = [text for kind, text in found if kind == "against"]
    assert len(texts) == 3
    assert any("south says 'malignent'" in text and "Did they mean 'malignant'?" in text for text in texts)
    assert any("west says 'carcinoma'" in text and "Others say 'carcinoma in situ'" in text for text in texts)
    assert all("label_map" in text for text in texts)


def test_another_case_or_form_of_a_class_is_the_class() -> None:
    assert points(an_answer("north", BOTH), an_answer("south", {"Benign": (60, 60), "MALIGNANT ": (40, 40)})) == []


def test_words_that_all_others_takes_for_a_class_are_told_all_the_same() -> None:
    found = points(an_answer("north", BOTH), an_answer("south", BOTH | {"malignent": (20, 20)}, others="benign"))
    assert [kind for kind, _ in found] == ["note"]
    assert "counts as 'benign' there" in found[0][1]
    assert "Did they mean 'malignant'?" in found[0][1]


def test_too_few_for_a_batch() -> None:
    few = an_answer("south", {"benign": (5, 5), "malignant": (5, 5)})
    assert points(an_answer("north", BOTH), few) == [
        ("note", "at most about 6 patients of south train, and the plan has batches of 8")
    ]


def test_what_a_policy_does_not_allow_and_a_delta_that_is_too_large() -> None:
    private = a_study(plan=PRIVATE)
    found = points(
        an_answer("north", BOTH, price=AskedPrice(0, 0, "budget")),
        an_answer("south", BOTH, price=AskedPrice(2.0, 0.01)),
        an_answer("west", BOTH, price=AskedPrice(2.0, 0.001)),
        study=private,
    )
    assert ("against", "the policy of north does not allow the plan: budget") in found
    assert ("against", "delta 1.0e-02 of south is not below one over its number of patients") in found
    assert not [text for _, text in found if "west" in text and "delta" in text]


def test_columns_that_most_patients_lack() -> None:
    empty, full = {"age": (0, 0), "dose": (90, 90)}, {"age": (0, 0), "dose": (0, 0)}
    found = points(an_answer("north", BOTH, missing=full), an_answer("south", BOTH, missing=empty))
    assert found == [("note", "column 'dose' is missing for most patients of south")]
    found = points(an_answer("north", BOTH, missing=empty), an_answer("south", BOTH, missing=empty))
    assert found == [("against", "column 'dose' is missing for most patients at every site")]


def test_vendors_and_spacings_that_are_apart() -> None:
    fine = {"vendor": {"GE": (100, 100)}, "spacing": {"0.5 mm": (90, 90), "2 mm": (10, 10)}}
    coarse = {"vendor": {"Philips": (100, 100)}, "spacing": {"0.9 mm": (100, 100)}}
    found = points(an_answer("north", BOTH, facts=fine), an_answer("south", BOTH, facts=coarse))
    assert [kind for kind, _ in found] == ["note"] * 3
    assert "most images of north have pixels of 0.5 mm, those of south of 0.9 mm" in found[2][1]


def test_a_site_that_does_not_answer_is_named_with_the_reason() -> None:
    found = points(an_answer("north", BOTH), an_answer("west", BOTH), Refusal(0, Code.POLICY, "south"))
    assert len(found) == 1
    assert "south gives no answer: its policy does not let it answer" in found[0][1]


@pytest.mark.parametrize(
    ("band", "words"), [((12, 12), "12"), ((0, 9), "fewer than 10"), ((50, 69), "50 to 69"), ((0, 0), "0")]
)
def test_bands_in_words(band: Band, words: str) -> None:
    assert band_in_words(band) == words
