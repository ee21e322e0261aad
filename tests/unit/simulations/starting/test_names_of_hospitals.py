"""Folders and tables of a person's own are called as people call them; sites get names that sites can have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import write_images
from fedgraft.simulations.starting.look import places

FOLDERS = ["Klinik Süd", "klinik sud", "São-Paulo (neu)", "東京", "大阪", "x" * 60]


@pytest.mark.parametrize("of_tables", [False, True])
def test_every_hospital_gets_a_name_of_its_own_that_a_site_can_have(of_tables: bool, tmp_path: Path) -> None:
    for name in FOLDERS:
        if of_tables:
            (tmp_path / f"{name}.csv").write_text("patient,age,disease\np1,3,yes\np2,4,no\n")
        else:
            write_images(tmp_path / name, 0, 4)
    found = places(tmp_path)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name) for name in found)
    assert len({name.lower() for name in found}) == len(FOLDERS)
    stems = {name: place.path.name.removesuffix(".csv") for name, place in found.items()}
    assert sorted(stems.values()) == sorted(FOLDERS)
    assert stems["Klinik_Sud"] == "Klinik Süd"
    assert stems["klinik_sud_2"] == "klinik sud"
