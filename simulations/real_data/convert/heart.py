"""Heart disease at four hospitals, from UCI's `processed.*.data`; and as FLamby has it, with its split."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from sklearn.model_selection import train_test_split

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import write_atomic
from fedgraft.simulations.real_data.convert.collection import Converted, table_of

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
_NOT_IN_FLAMBY = ("slope", "ca", "thal")
_FLAMBY_TEST, _FLAMBY_SEED = 0.34, 43
"""Of `fed_heart_disease` in its code: the share that is tested, and the seed of scikit-learn's split."""


def uci_heart(source: Path, out: Path, _size: int) -> Converted:
    """OUT/HOSPITAL.csv of all patients: an empty cell for `?`, and `disease`, which is yes where `num` is above 0."""
    return _write(out, {name: _patients(source, name) for name in HOSPITALS}, ("patient", *COLUMNS, "disease"))


def flamby_heart(source: Path, out: Path, _size: int) -> Converted:
    """The same of ten columns and complete cases, with FLamby's training and test patients in a column `split`."""
    sites, left_out = {}, Counter[str]()
    kept = tuple(name for name in COLUMNS if name not in _NOT_IN_FLAMBY)
    for name in HOSPITALS:
        rows = _patients(source, name)
        complete = [row for row in rows if all(row[column] for column in kept)]
        left_out["a value is missing"] += len(rows) - len(complete)
        sick = [row["disease"] for row in complete]
        # Patients are drawn class by class, unless a class has hardly any.
        by_class = sick if len(set(sick)) > 1 and min(Counter(sick).values()) > 2 else None
        _, test = train_test_split(
            range(len(complete)),
            test_size=_FLAMBY_TEST,
            train_size=1 - _FLAMBY_TEST,
            random_state=_FLAMBY_SEED,
            stratify=by_class,
        )
        tested = set(test)
        sites[name] = [row | {"split": "test" if at in tested else "train"} for at, row in enumerate(complete)]
    converted = _write(out, sites, ("patient", *kept, "disease", "split"))
    converted.left_out.update(left_out)
    return converted


def _patients(source: Path, name: str) -> list[dict[str, str]]:
    """One hospital's rows. InputError for a file that is not there or of another form."""
    path = source / f"processed.{name}.data"
    if not path.is_file():
        raise InputError(f"{source}: there is no {path.name}.", fix="UCI's archive has four processed.*.data files.")
    rows: list[dict[str, str]] = []
    with path.open(newline="", encoding="latin-1") as file:
        for line, cells in enumerate(csv.reader(file), start=1):
            if not cells:
                continue
            if len(cells) != len(COLUMNS):
                raise InputError(f"{path}: line {line} has {len(cells)} cells, not {len(COLUMNS)}.")
            row = {column: _number(path, line, cell) for column, cell in zip(COLUMNS, cells, strict=True)}
            disease = {"disease": ("yes" if float(row["num"]) > 0 else "no") if row["num"] else ""}
            rows.append({"patient": f"{name}-{len(rows) + 1:03d}"} | row | disease)
    return rows


def _number(path: Path, line: int, cell: str) -> str:
    """A number as one writes it, without trailing zeros; "" for what is missing."""
    cell = cell.strip()
    if cell in ("?", ""):
        return ""
    try:
        return f"{float(cell):.10g}"
    except ValueError:
        raise InputError(f"{path}: line {line}: {cell!r} is no number.") from None


def _write(out: Path, sites: dict[str, list[dict[str, str]]], columns: tuple[str, ...]) -> Converted:
    if there := [name for name in sites if (out / f"{name}.csv").exists()]:
        raise InputError(f"{out}: has {there[0]}.csv already.", fix="Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in sites.items():
        write_atomic(out / f"{name}.csv", table_of(columns, rows))
    every = [row for rows in sites.values() for row in rows]
    return Converted(", ".join(sites), Counter(row["disease"] for row in every), len(every))
