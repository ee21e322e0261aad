"""The report that a hospital may give away: somebody who knows all patients but one cannot find that one in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedgraft.client.preflight.report import Findings, Report, ReportPart
from fedgraft.client.preflight.shareable import shareable
from helpers.site_home import CLASSES, Hospital

PARTS = ("data", "policy")


def leave(hospital: Hospital) -> None:
    """The patient's files and row are not there."""
    patient = hospital.rows()[0]["PatientID"]
    hospital.write_rows(hospital.rows()[1:])
    for file in hospital.files():
        if patient in file.read_bytes().decode("latin-1"):
            file.unlink()


def another_class(hospital: Hospital) -> None:
    first, *others = hospital.rows()
    other = next(name for name in CLASSES if name != first["diagnosis"])
    hospital.write_rows([{**first, "diagnosis": other}, *others])


def no_label(hospital: Hospital) -> None:
    hospital.write_rows(hospital.rows()[1:])


def a_broken_file(hospital: Hospital) -> None:
    file = hospital.files()[0]
    file.write_bytes(file.read_bytes()[:1400])


def another_vendor(hospital: Hospital) -> None:
    hospital.edit(hospital.files()[0], Manufacturer="SIEMENS", WindowCenter=None, WindowWidth=None)


CHANGES = (leave, another_class, no_label, a_broken_file, another_vendor)


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("change", CHANGES)
def test_one_patient_is_not_found_in_what_may_be_shared(hospital: Hospital, change: Callable, before: dict) -> None:
    if not before:
        report = hospital.check(*PARTS)
        before |= {"shared": shareable(report), "own": report.content()["lines"]}
    change(hospital)
    report = hospital.check(*PARTS)
    assert report.content()["lines"] != before["own"], "the change is seen by the hospital"
    assert shareable(report) == before["shared"]


def numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for one in value.values():
            yield from numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_whatever_a_line_about_patients_holds_no_exact_number_of_it_is_shared() -> None:
    found = Findings(private=["a name"])
    found.note(
        "x", "7 of 1,234 patients", "Look at 3 files.", n=1234, few=7, none=0, share=0.123, deep={"a": 3, "b": 57}
    )
    found.fails("y", "999 images", "Export them again.", images=999, flag=True, more={"c": {"d": 5}}, listed=[1, 2])
    shared = shareable(Report(None, (ReportPart("data", 12.345, found), ReportPart("new part", 1.2, found))))
    assert [line["level"] for line in shared["lines"]] == ["ok", "fails"] * 2
    assert set(numbers(dict(enumerate(shared["lines"])))) == {1230, 50, 990}
    assert shared["lines"][0]["figures"] == {
        "n": 1230,
        "few": "fewer than 10",
        "none": "fewer than 10",
        "deep": {"b": 50},
    }
    assert shared["seconds"] == {}
    assert not [word for word in ("7 of", "999 images", "3 files", "a name", "0.12") if word in json.dumps(shared)]
