"""Features from files: .npz, .safetensors or .parquet, with the columns beside them as text.

Runs in the process that decodes (see `decoder`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding import npz
from fedgraft.client.data.decoding.unusable import FaultyError
from fedgraft.client.data.decoding.wall import wall

FEATURES, EXTRACTOR, COLUMNS = "features", "extractor", "columns"
"""Names in a file: of the array, of what made it, and of what else is known of its rows (of .safetensors alone)."""
_PARQUET_KEY = b"fedgraft.extractor"
Parts = tuple[NDArray[Any], dict[str, list[str]], str | None]


def read(path: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """The features (N, width) float32, and as words `columns`, texts by name, and `extractor`, JSON or None.

    `options["columns"]` says what columns of a table are called: `e*` for e0, e1, ... FaultyError with what is wrong.
    """
    readers = {".npz": _npz, ".safetensors": _safetensors, ".parquet": _parquet}
    features, columns, extractor = readers[path.suffix.lower()](path, str(options["columns"]))
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise FaultyError(f"{FEATURES!r} is an array of {features.dtype} of shape {features.shape}, not (cases, width)")
    for name, column in columns.items():
        if len(column) != len(features):
            raise FaultyError(f"{name!r} has {len(column):,} rows, and {FEATURES!r} {len(features):,}")
    numbers = features.astype(np.float32)
    if not (whole := np.isfinite(numbers)).all():
        row, column_ = np.argwhere(~whole)[0].tolist()
        raise FaultyError(f"row {row}, feature {column_}: is no finite number")
    return {"columns": columns, "extractor": extractor}, [numbers]


def numbered(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a pattern with `*` for a number means, in the order of the numbers, which begin at 0 or 1.

    FaultyError if one is missing, or there is none.
    """
    start, _, end = pattern.partition("*")
    expression = re.compile(f"{re.escape(start)}0*([0-9]+){re.escape(end)}")
    found = {int(match[1]): name for name in names if (match := expression.fullmatch(name))}
    if not found:
        raise FaultyError(f"no column is called like {pattern!r}, with a number for the star")
    first = min(found)
    missing = next((number for number in range(first, first + len(found)) if number not in found), None)
    if first > 1 or missing is not None:
        raise FaultyError(f"of the columns {pattern!r}, number {0 if first > 1 else missing} is missing")
    return [found[number] for number in sorted(found)]


def as_texts(values: Sequence[Any]) -> list[str]:
    """Cells as a CSV file would have them: nothing for what is missing, 1 for 1.0."""
    return ["" if value is None or value != value else _text(value) for value in values]  # noqa: PLR0124 - NaN


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _npz(path: Path, _: str) -> Parts:
    there = npz.read(path, {"names": []})[0]["there"]
    words, arrays = npz.read(path, {"names": there})
    found: dict[str, Any] = dict(zip(words["names"], arrays, strict=True))
    if FEATURES not in found:
        raise FaultyError(f"has no array {FEATURES!r}; it has: {', '.join(there[:20])}")
    extractor = words["texts"].pop(EXTRACTOR, None)
    columns = {name: as_texts(array.tolist()) for name, array in found.items() if array.ndim == 1}
    columns |= {name: list(map(str, column)) for name, column in words["texts"].items() if isinstance(column, list)}
    return found[FEATURES], columns, extractor if isinstance(extractor, str) else None


def _safetensors(path: Path, _: str) -> Parts:
    from safetensors import safe_open

    with wall("unreadable"), safe_open(path, framework="np") as file:
        metadata, there = dict(file.metadata() or {}), list(file.keys())
        if FEATURES not in there:
            raise FaultyError(f"has no tensor {FEATURES!r}; it has: {', '.join(there[:20])}")
        features = file.get_tensor(FEATURES)
        others = {name: file.get_tensor(name) for name in there if name != FEATURES}
        columns = {name: as_texts(array.tolist()) for name, array in others.items() if array.ndim == 1}
    return features, columns | _listed(metadata.get(COLUMNS)), metadata.get(EXTRACTOR)


def _listed(text: str | None) -> dict[str, list[str]]:
    """Columns of text, as JSON in the head of the file."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        raise FaultyError(f"{COLUMNS!r} of its head is no JSON") from None
    if not isinstance(found, dict) or not all(isinstance(column, list) for column in found.values()):
        raise FaultyError(f"{COLUMNS!r} of its head is no mapping of names to lists")
    return {str(name): as_texts(column) for name, column in found.items()}


def _parquet(path: Path, pattern: str) -> Parts:
    try:
        from pyarrow import parquet
    except ImportError:
        raise FaultyError("cannot be read: Parquet needs pyarrow", 'pip install "fedgraft[medical]"') from None
    with wall("unreadable"):
        table = parquet.read_table(path)
    names = [str(name) for name in table.column_names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FaultyError(f"has two columns {twice[0]!r}")
    if FEATURES in names:
        chosen, features = [FEATURES], _lists(table.column(FEATURES).to_pylist())
    else:
        chosen = numbered(names, pattern)
        features = np.stack([_floats(table.column(name), name) for name in chosen], axis=1)
    columns = {name: as_texts(table.column(name).to_pylist()) for name in names if name not in chosen}
    extractor = (table.schema.metadata or {}).get(_PARQUET_KEY)
    return features, columns, extractor.decode("utf-8", "replace") if extractor is not None else None


def _floats(column: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(column.to_numpy(), np.float32)
    except (ValueError, TypeError):
        raise FaultyError(f"column {name!r} holds what is no number") from None


def _lists(rows: Sequence[Any]) -> NDArray[Any]:
    width = len(rows[0]) if rows and isinstance(rows[0], list) else 0
    for at, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width:
            raise FaultyError(f"{FEATURES!r}, row {at}: has not the {width} numbers that row 0 has")
    try:
        return np.array(rows, np.float32).reshape(len(rows), width)
    except (ValueError, TypeError):
        raise FaultyError(f"{FEATURES!r} holds what is no number") from None
