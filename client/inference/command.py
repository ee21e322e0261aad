"""`fedgraft predict`: what a model says of images or of a table's rows, and maps of where it looked."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch

from fedgraft.client.data.readers.rows import read_rows
from fedgraft.client.data.spec import DERIVED
from fedgraft.client.inference.answers import answer_row, png, thresholds
from fedgraft.client.inference.dicom.kinds import kinds_of
from fedgraft.client.inference.export import Kind, export
from fedgraft.client.inference.heat import HEATS, laid_over
from fedgraft.client.inference.images import Picture, pictures
from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import make_folder, write_atomic
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.inputs import TableInput

if TYPE_CHECKING:
    from fedgraft.client.inference.dicom.writing import DicomOut

_BATCH = 64


@dataclass(frozen=True)
class PredictRequest:
    """What was asked of `fedgraft predict`."""

    model: str
    images: Path
    out: Path
    site: Path | None = None
    heat: tuple[str, ...] = ()
    task: str | None = None
    of: str | None = None
    adapt: bool = False
    accept: tuple[str, ...] = ()
    dicom: tuple[str, ...] = ()


def predict(asked: PredictRequest) -> None:
    """Write `predictions.csv`, and overlays if asked for; private, since files may be named by patients."""
    if asked.out.exists() and any(asked.out.iterdir()):
        raise InputError(f"{asked.out} is not empty.", fix="Choose another --out.")
    if wrong := [name for name in asked.heat if name not in HEATS]:
        raise InputError(f"No heat map is called {wrong[0]!r}; there are: {', '.join(HEATS)}.")
    if unknown := [kind for kind in asked.accept if kind not in DERIVED]:
        raise InputError(f"No kind of DICOM object is called {unknown[0]!r}; there are: {', '.join(DERIVED)}.")
    demand_place(asked.out)
    reader = LoadedModel(asked.model, asked.site, everything=True)
    kinds = kinds_of(asked.dicom, reader, heat=bool(asked.heat))
    if isinstance(reader.input, TableInput):
        _predict_table(reader, reader.input, asked)
        return
    task = _task(reader, asked)
    make_folder(asked.out)
    everything = list(pictures(asked.images, reader.input, asked.accept))
    usable = [one for one in everything if one.stored is not None]
    if not usable:
        reasons = ", ".join(sorted({one.problem for one in everything})) or "no files"
        raise InputError(f"{asked.images}: nothing in it can be used ({reasons}).")
    if asked.adapt:
        reader.adapt(usable)
    if kinds:
        from fedgraft.client.inference.dicom.writing import DicomOut  # needs highdicom

        with DicomOut(kinds, reader, asked.out, usable) as objects:
            rows = _rows(reader, usable, (task, asked), objects)
        say(objects.says)
    else:
        rows = _rows(reader, usable, (task, asked))
    rows += [{"file": one.file, "frame": str(one.frame), "problem": one.problem} for one in everything if one.problem]
    write_atomic(asked.out / "predictions.csv", _table(rows), private=True)
    say(f"{len(usable)} images of {asked.images}: {asked.out / 'predictions.csv'}")
    if len(usable) < len(everything):
        say(f"{len(everything) - len(usable)} files could not be used; the table says why.")
    _say_ood(reader, rows)
    for line in thresholds(reader):
        say(line)
    say("Not a medical device: the model was not validated for any use.")


def _rows(
    reader: LoadedModel, usable: Sequence[Picture], what: tuple[str, PredictRequest], objects: DicomOut | None = None
) -> list[dict[str, str]]:
    """A row for each image; masks, overlays and `objects` are written on the way."""
    task, asked = what
    rows: list[dict[str, str]] = []
    for start in range(0, len(usable), _BATCH):
        some = usable[start : start + _BATCH]
        said = reader.answers(reader.loader(some))
        far = reader.distances(some)
        maps = _overlays(reader, some, said.get(task, np.zeros(0)), task, asked)
        for at, (one, drawn) in enumerate(zip(some, maps, strict=True)):
            row = {"file": one.file, "frame": str(one.frame), "problem": ""}
            own, number = {name: answers[at] for name, answers in said.items()}, start + at + 1
            row |= answer_row(reader, own, asked.out, number)
            if objects is not None:
                objects.add(one, own, drawn)
            rows.append(row | _ood(reader, far, at) | _write_overlays(drawn, asked.out, number))
    return rows


def export_model(model: str, to: str, out: Path, site: Path | None) -> None:
    """Write a model for other programs, and say where. InputError for a form that is not known."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    kind = next((one for one in kinds if one == to), None)
    if kind is None:
        raise InputError(f"--to {to}: there is no such form{instead(to, kinds)}.")
    if kind == "safetensors" and site is not None:
        raise InputError("A site's own entries are no part of the weights' file.", fix="Use --to onnx or torchscript.")
    written = export(LoadedModel(model, site, everything=True), model, kind, out)
    say(f"{written}: {to}; model.json says how it is to be used")
    say("Not a medical device: the model was not validated for any use.")


def _predict_table(reader: LoadedModel, columns: TableInput, asked: PredictRequest) -> None:
    """What the model says of every row of a CSV file, by the line that it ends on."""
    if asked.heat or asked.adapt:
        raise InputError("--heat and --adapt are for images, and this model is for tables.", fix="Leave them out.")
    table, inputs, problems = read_rows(asked.images, columns)
    make_folder(asked.out)
    said = reader.answers(reader.over(torch.from_numpy(inputs)))
    rows = [
        {"line": str(line)} | answer_row(reader, {name: own[at] for name, own in said.items()}, asked.out, at + 1)
        for at, line in enumerate(table.lines)
    ]
    write_atomic(asked.out / "predictions.csv", _table(rows), private=True)
    say(f"{len(rows)} rows of {asked.images}: {asked.out / 'predictions.csv'}")
    for problem, count in sorted(problems.items()):
        say(f"{problem.replace('_', ' ')}: {count}")
    for line in thresholds(reader):
        say(line)
    say("Not a medical device: the model was not validated for any use.")


def _task(reader: LoadedModel, asked: PredictRequest) -> str:
    """The task of the overlays; "" if none is asked for and there is none with classes."""
    tasks = {task.name: task.classes for task in reader.tasks}
    if not tasks and not asked.heat and asked.task is None:
        return ""
    name = asked.task or next(iter(tasks), "")
    if name not in tasks:
        raise InputError(f"The model has no task {name!r}; it has: {', '.join(tasks)}.")
    if asked.of is not None and asked.of not in tasks[name]:
        raise InputError(f"Task {name!r} has no class {asked.of!r}; it has: {', '.join(tasks[name])}.")
    return name


def _ood(reader: LoadedModel, far: np.ndarray | None, at: int) -> dict[str, str]:
    if far is None or reader.ood_model is None:
        return {}
    return {"distance": f"{far[at]:.4f}", "ood": "yes" if far[at] > reader.ood_model.threshold else "no"}


def _say_ood(reader: LoadedModel, rows: Sequence[dict[str, str]]) -> None:
    """How many images are out of distribution for the training sites, or why that is not known."""
    known = reader.ood_model
    if known is None:
        say(f"No image is flagged as out of distribution for the training sites: {reader.no_ood_because}.")
        return
    count = sum(row.get("ood") == "yes" for row in rows)
    say(
        f"{count} images are out of distribution for the training sites: farther than "
        f"{known.quantile:.1%} of {known.cases} "
        "validation images of theirs. What is not flagged may be so all the same."
    )


def _overlays(
    reader: LoadedModel, some: Sequence[Picture], shares: np.ndarray, task: str, asked: PredictRequest
) -> Iterator[dict[str, np.ndarray]]:
    """Each image's overlays by name; the map is of the likeliest class, or of the one asked for."""
    if not asked.heat:
        yield from ({} for _ in some)
        return
    names = next(own.classes for own in reader.tasks if own.name == task)
    chosen = torch.from_numpy(shares.argmax(axis=1))
    if asked.of is not None:
        chosen = torch.full_like(chosen, names.index(asked.of))
    (batch,) = reader.loader(some).batches([torch.arange(len(some))])
    maps = {name: HEATS[name](reader.local_model.model, batch.inputs, task, chosen) for name in asked.heat}
    for at, one in enumerate(some):
        assert one.stored is not None
        yield {name: laid_over(one.stored, heat[at].numpy()) for name, heat in maps.items()}


def _write_overlays(drawn: Mapping[str, np.ndarray], out: Path, number: int) -> dict[str, str]:
    """Write the overlays of one image, and say where they are."""
    for name, pixels in drawn.items():
        write_atomic(out / f"{name}/{number:06d}.png", png(pixels), private=True)
    return {name: f"{name}/{number:06d}.png" for name in drawn}


def _table(rows: Sequence[dict[str, str]]) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
