"""From what lies in a folder to a study and a scenario that run, with all that was guessed on the way."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fedgraft.client.data.decoding.decoder import decode
from fedgraft.common.base.errors import InputError
from fedgraft.simulations.starting.columns import Columns
from fedgraft.simulations.starting.defaults import FirstMethod, for_images, for_table
from fedgraft.simulations.starting.look import FoundPlace, size_of

_NO_FINDING = frozenset({"no finding", "no", "none", "normal"})
_TASK = "cls"


@dataclass
class StudyProposal:
    """A study and its scenario as plain values, and lines for the person."""

    study: dict[str, Any]
    scenario: dict[str, Any]
    said: list[str] = field(default_factory=list)


def propose(found: Mapping[str, FoundPlace], name: str) -> StudyProposal:
    """A first study over these cohorts. InputError if nothing could be a label, or nothing an input."""
    places = list(found.values())
    said = [f"{site}: {line}" if site else line for site, place in found.items() for line in place.said]
    task = _task(places, said)
    table = places[0].kind == "table"
    first = _table(places, task, said) if table else _images(places, said)
    said += first.said()
    study: dict[str, Any] = {"name": name, "seed": 0, "scenario": "hospitals.yaml", "tasks": [task]}
    study |= {"input": first.input, "model": first.model, "method": first.method}
    if places[0].kind == "npz" or any(place.columns and place.columns.split for place in places):
        study["evaluate"] = {"every": 0}
        said.append("the data bring their own split, which is used; sites are evaluated at the end alone")
    return StudyProposal(study, _scenario(found, name, task, said), said)


def _task(places: list[FoundPlace], said: list[str]) -> dict[str, Any]:
    """What is asked: the classes, or several labels, that all sites together have."""
    if places[0].kind == "npz":
        return _task_of_arrays(places[0].cohort["root"], said)
    folders = {name for place in places for name in place.classes}
    columns = [place.columns for place in places if place.columns is not None and place.columns.label is not None]
    several = any(one.separator for one in columns)
    words = _different([*sorted(folders), *(word for one in columns for word in one.words)])
    if several:
        labels = [word for word in words if word.lower() not in _NO_FINDING]
        said.append(f"several labels a case: {', '.join(labels)}; `{_TASK}` asks for each")
        return {"name": _TASK, "kind": "multilabel", "labels": labels}
    if len(words) < 2:
        raise InputError(
            "Nothing was found that could be a label.",
            fix="Put images into a folder per class, or add a CSV file with a row for each, and a column `label`.",
        )
    if columns:
        said.append(f"the label is column {', '.join(sorted({repr(one.label) for one in columns}))}")
    said.append(f"classes: {', '.join(words)}")
    return {"name": _TASK, "classes": words}


def _task_of_arrays(path: Path, said: list[str]) -> dict[str, Any]:
    _, (labels,) = decode("fedgraft.client.data.decoding.npz:read", path, {"names": ["train_labels"]})
    shape = labels.reshape(len(labels), -1).shape[1]
    if shape > 1:
        said.append(f"{shape} labels a case, whose names the file does not say")
        return {"name": _TASK, "kind": "multilabel", "labels": [f"label_{at}" for at in range(shape)]}
    count = int(labels.max()) + 1
    said.append(f"{count} classes, whose names the file does not say: write them into `classes`, in order")
    return {"name": _TASK, "classes": [str(number) for number in range(max(2, count))]}


def _different(words: Iterable[str]) -> list[str]:
    """Words without those that differ from another in case alone, which mean the same class."""
    found: dict[str, str] = {}
    for word in words:
        found.setdefault(word.casefold(), word)
    return sorted(found.values())


def _images(places: list[FoundPlace], said: list[str]) -> FirstMethod:
    images = sum(place.images for place in places)
    if places[0].kind == "npz":
        side, colour, images = _shape_of(places[0].cohort["root"])
    elif places[0].kind == "nifti":
        side, colour = 64, False
    else:
        looks = [size_of(place) for place in places]
        side, colour = min(side for side, _ in looks), any(colour for _, colour in looks)
    first = for_images(side, colour=colour, images=images)
    size = first.input["size"]
    said.append(f"images are brought to {size} x {size} pixels, {'in colour' if colour else 'grey'}")
    return first


def _shape_of(path: Path) -> tuple[int, bool, int]:
    """The side of a benchmark's images, whether they have colour, and how many train, from the head of their array."""
    with zipfile.ZipFile(path) as packed, packed.open("train_images.npy") as stream:
        version = npy.read_magic(stream)
        shape, _, _ = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    return int(np.min(shape[1:3])), len(shape) == 4 and shape[3] == 3, int(shape[0])


def _table(places: list[FoundPlace], task: Mapping[str, Any], said: list[str]) -> FirstMethod:
    columns = _columns(places, said)
    answers = len(task["labels"] if "labels" in task else task["classes"])
    width = len(columns.get("numeric", ())) + sum(map(len, columns.get("categorical", {}).values()))
    return for_table(columns, answers=answers, width=width)


def _columns(places: list[FoundPlace], said: list[str]) -> dict[str, Any]:
    """Columns that all tables have; a category is one if any site has it."""
    known = [place.columns for place in places if place.columns is not None]
    telling = sorted({name for one in known for name in one.telling})
    if telling:
        said.append(f"left out: the columns {', '.join(telling)}, each of which gives the label away")
    numeric = [name for name in known[0].numeric if all(name in one.numeric for one in known)]
    shared = [name for name in known[0].categorical if all(name in one.categorical for one in known)]
    categorical = {name: sorted({word for one in known for word in one.categorical[name]}) for name in shared}
    lost = {name for one in known for name in (*one.numeric, *one.categorical)} - {*numeric, *shared, *telling}
    if lost:
        said.append(f"left out: the columns {', '.join(sorted(lost))}, which not all tables have alike")
    if not numeric and not categorical:
        raise InputError("No column was found that a model could learn from.", fix="Numbers, or a few words, would do.")
    said.append(f"{len(numeric)} columns are numbers, {len(categorical)} are words")
    return (
        {"kind": "table"}
        | ({"numeric": numeric} if numeric else {})
        | ({"categorical": categorical} if categorical else {})
    )


def _scenario(found: Mapping[str, FoundPlace], name: str, task: Mapping[str, Any], said: list[str]) -> dict[str, Any]:
    cohorts = {site: _cohort(place, task) for site, place in found.items()}
    if "" not in found:
        said.append(f"{len(found)} hospitals: {', '.join(found)}")
        return {"name": name, "sites": [{"name": site, "cohort": cohort} for site, cohort in cohorts.items()]}
    (place,) = found.values()
    by: dict[str, Any] = {"kind": "sizes", "shares": [0.4, 0.3, 0.3]}
    if place.columns is not None and place.columns.site is not None:
        by = {"kind": "column", "column": place.columns.site}
        said.append(f"hospitals are the values of column {place.columns.site!r}")
    else:
        said.append("nothing says whose hospital a case is of: three are made up, which share the patients at random")
    return {"name": name, "seed": 0, "partition": {"cohort": cohorts[""], "by": by}}


def _cohort(place: FoundPlace, task: Mapping[str, Any]) -> dict[str, Any]:
    cohort = {key: str(value) if isinstance(value, Path) else value for key, value in place.cohort.items()}
    columns: Columns | None = place.columns
    if columns is not None and columns.label is not None:
        cohort["label_columns"] = {_TASK: columns.label}
    if columns is not None and columns.split is not None:
        cohort["split_column"] = columns.split
    if columns is not None and "labels" in task:
        cohort["label_map"] = {_TASK: {word: "no" for word in columns.words if word.lower() in _NO_FINDING}}
    return cohort
