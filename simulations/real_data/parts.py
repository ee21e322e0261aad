"""Part of a collection of images as a site of its own: the patients of one hospital, or of a share of it."""

from __future__ import annotations

import csv
import hashlib
import secrets
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, home, sha256_file
from fedgraft.common.base.seeds import derive
from fedgraft.common.base.value import Value


class HospitalPart(Value):
    """Which rows of a cohort's table of labels are this site's: those with `value` in `column`, and of their patients
    share `number` of `of`, who are dealt out by the scenario's seed. No patient is in two parts of one column."""

    column: str
    value: str
    number: Annotated[int, Field(ge=1)] = 1
    of: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _is_one_of_them(self) -> HospitalPart:
        if self.number > self.of:
            raise ValueError(f"number {self.number} is above of: {self.of}")
        return self


def part_of(spec: CohortSpec, part: HospitalPart, seed: int) -> CohortSpec:
    """The part's images, copied with their labels into a folder of their own below fedgraft's home, once.

    InputError for a column or value that the table has not.
    """
    assert spec.labels is not None  # the scenario asked
    assert spec.patient_column is not None
    asked = {"part": part.model_dump(mode="json"), "seed": seed, "labels": sha256_file(spec.labels)}
    asked |= {"patients": spec.patient_column, "files": spec.key_column}
    digest = hashlib.sha256(canonical_json(asked)).hexdigest()
    out = home() / "parts" / f"{part.value}-{part.number}-{digest[:12]}"
    found = spec.model_copy(update={"root": out / "images", "labels": out / "labels.csv"})
    if not out.exists():
        _copy(spec, _rows(spec, part, seed), out)
    return found


def _rows(spec: CohortSpec, part: HospitalPart, seed: int) -> list[dict[str, str]]:
    """The part's rows of the table, as they are."""
    assert spec.labels is not None
    with spec.labels.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for name in (part.column, spec.patient_column, spec.key_column):
        if name is None or not rows or name not in rows[0]:
            raise InputError(f"{spec.labels}: has no column {name!r}, by which its rows would be divided.")
    own = [row for row in rows if row[part.column] == part.value]
    if not own:
        there = ", ".join(sorted({row[part.column] for row in rows}))
        raise InputError(f"{spec.labels}: no row has {part.value!r} in column {part.column!r}; there are: {there}.")
    patients = sorted({row[str(spec.patient_column)] for row in own})
    np.random.default_rng(derive(seed, "part", part.value)).shuffle(patients)
    mine = set(patients[part.number - 1 :: part.of])
    return [row for row in own if row[str(spec.patient_column)] in mine]


def _copy(spec: CohortSpec, rows: list[dict[str, str]], out: Path) -> None:
    """All of it or nothing: a folder that was half copied would be another hospital."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        for row in rows:
            name = row[str(spec.key_column)]
            target = temporary / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(spec.root / name, target)
        with (temporary / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        temporary.rename(out)
    except OSError as error:
        if not out.is_dir():  # else another process was quicker
            raise InputError(f"{error.filename or out}: cannot be copied: {error.strerror}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
