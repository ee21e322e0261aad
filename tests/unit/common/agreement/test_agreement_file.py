"""The file of an agreement: read back as it was, and refused if anybody changed it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedgraft.common.agreement.agreement import AGREEMENT, SupplyAgreement, agreed, read_agreement, remarks
from fedgraft.common.base.errors import InputError
from fedgraft.common.protocol.answers import AskedPrice, SiteAnswer, TaskSupply
from fedgraft.common.protocol.instructions import Code, Refusal
from helpers.asked import PRIVATE, a_study

STUDY = a_study()
ANSWER = SiteAnswer(
    "north",
    False,
    False,
    (70, 99),
    {"cls": TaskSupply({"benign": (50, 69)}, (10, 14), (0, 9), "benign")},
    {"vendor": {"GE": (70, 99)}},
    {"age": (0, 9)},
    AskedPrice(1.5, 1e-3),
    "ab" * 32,
    "cd" * 32,
)
AGREED = SupplyAgreement.of(STUDY, {"north": ANSWER, "south": Refusal(0, Code.POLICY, "south")}, "now")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / AGREEMENT).write_text(json.dumps(AGREED.content() | {"verdict": []}))
    return tmp_path / AGREEMENT


def test_it_is_read_back_by_file_or_folder(file: Path) -> None:
    assert read_agreement(file) == read_agreement(file.parent) == AGREED


def change(content: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    *before, last = path
    inner = content["agreement"]
    for key in before:
        inner = inner[key]
    inner[last] = to
    return content


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("answers", "north", "tasks", "cls", "words", "benign"), [500, 699]),
        (("answers", "north", "state"), "ef" * 32),
        (("refusals", "south"), "budget"),
        (("study",), "0" * 64),
        (("at",), "then"),
    ],
)
def test_a_change_of_any_part_is_found(file: Path, path: tuple[str, ...], to: Any) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()), *path, to=to)))
    with pytest.raises(InputError, match=r"agreement\.json: was changed since it was written"):
        read_agreement(file)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("answers", "north", "patients"), [9, 3]),
        (("answers", "north", "patients"), [-1, 3]),
        (("answers", "north", "site"), "south"),
        (("answers", "north", "seal"), "short"),
        (("answers", "north", "price", "epsilon"), -1),
        (("answers", "north", "facts", "vendor"), {"\x1b[2J": [1, 2]}),
        (("refusals", "south"), "no such code"),
        (("answers",), [1]),
    ],
)
def test_what_is_no_agreement_is_named(file: Path, path: tuple[str, ...], to: Any) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()), *path, to=to)))
    with pytest.raises(InputError, match=r"agreement\.json: is no agreement of sites"):
        read_agreement(file)


def test_it_holds_for_another_plan_and_for_no_other_question(file: Path) -> None:
    assert agreed(file, a_study(plan=PRIVATE)) == AGREED
    told = list(remarks(AGREED, a_study(plan=PRIVATE), ["north", "west"]))
    assert "prices in the agreement are of another plan" in told[1]
    assert "nothing is pinned for west" in told[2]
    with pytest.raises(InputError, match="sites were asked about other tasks or columns"):
        agreed(file, a_study("benign", "malignant", "cyst"))
