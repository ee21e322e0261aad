"""Who can supply what, as a coordinator sees it: one table, and nothing that a site wrote is obeyed or is markup."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fedgraft.common.agreement.agreement import SupplyAgreement, read_agreement
from fedgraft.common.protocol.answers import AskedPrice, SiteAnswer, TaskSupply
from fedgraft.common.protocol.instructions import Code, Refusal
from fedgraft.server.agreement.pages import write_agreement
from fedgraft.server.agreement.tables import supply_table
from helpers.asked import a_study

STUDY = a_study()
NORTH = SiteAnswer(
    "north",
    False,
    False,
    (70, 99),
    {"cls": TaskSupply({"benign": (50, 69), "cyst": (10, 14)}, (0, 9), (15, 19))},
    {"vendor": {"GE": (70, 99)}, "sex": {"F": (30, 49), "not stated": (10, 14)}},
    {"age": (0, 9), "dose": (50, 69)},
    AskedPrice(1.5, 1e-3),
    "ab" * 32,
    "cd" * 32,
)


def an_agreement(*answers: SiteAnswer) -> SupplyAgreement:
    found = {answer.site: answer for answer in answers}
    return SupplyAgreement.of(STUDY, found | {"south": Refusal(0, Code.POLICY, "south")}, "now")


def test_a_row_for_each_site_and_a_column_for_each_class() -> None:
    table = supply_table(STUDY, an_agreement(NORTH))
    assert table.columns == ("site", "patients", "benign", "malignant", "no label", "other words", "epsilon")
    north, south = (line.cells for line in table.rows)
    assert north == (
        *("north", "70 to 99", "50 to 69", "fewer than 10", "15 to 19", "'cyst' 10 to 14"),
        "1.50 at delta 1.0e-03",
    )
    assert south[:2] == ("south", "no answer: policy")


def test_files_hold_the_table_the_verdict_and_the_digest(tmp_path: Path) -> None:
    agreement = an_agreement(NORTH)
    data, page, plain = write_agreement(STUDY, agreement, tmp_path)
    assert read_agreement(data) == agreement
    assert any("cyst" in point["text"] for point in json.loads(data.read_text())["verdict"])
    for path in (page, plain):
        text = path.read_text()
        assert all(word in text for word in (agreement.digest, "50 to 69", "no answer: policy", "GE 70 to 99"))


def test_names_from_sites_are_never_markup(tmp_path: Path) -> None:
    name, word = "<img src=x>", "a|b `c` <script>alert(1)</script>"
    odd = replace(NORTH, site=name, tasks={"cls": TaskSupply({"benign": (50, 69), word: (10, 14)})})
    _, page, plain = write_agreement(STUDY, an_agreement(odd), tmp_path)
    assert "<img" not in page.read_text()
    assert "<script" not in page.read_text()
    row = next(line for line in plain.read_text().splitlines() if line.startswith("| &lt;img"))
    assert row.replace("\\|", "").count("|") == len(supply_table(STUDY, an_agreement(NORTH)).columns) + 1
    assert "<script" not in plain.read_text()


def test_a_page_says_so_if_nothing_stands_against_the_study(tmp_path: Path) -> None:
    whole = replace(NORTH, tasks={"cls": TaskSupply({"benign": (50, 69), "malignant": (20, 29)})}, missing={})
    _, *pages = write_agreement(STUDY, SupplyAgreement.of(STUDY, {"north": whole}, "now"), tmp_path)
    assert all("Nothing stands against the study" in page.read_text() for page in pages)
