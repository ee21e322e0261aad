"""`fedgraft predict`: what a model says of data of any kind, and maps of where it looked."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from fedgraft.client.data.spec import DERIVED
from fedgraft.client.enrolment.config import is_site, read_config, read_site
from fedgraft.client.governance.plugins import allowed_to_look
from fedgraft.client.inference.answers import Sets, answer_row, png, said_of_sets, sets_of, thresholds
from fedgraft.client.inference.cases import InputCase, InputCases, Reading, read_cases
from fedgraft.client.inference.dicom.kinds import kinds_of
from fedgraft.client.inference.export import Kind, export
from fedgraft.client.inference.heat import HEATS, laid_over
from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import make_folder, write_atomic
from fedgraft.common.config.config_files import override
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.inputs import TableInput

if TYPE_CHECKING:
    from fedgraft.client.inference.dicom.writing import DicomOut

_BATCH = 64


@dataclass(frozen=True)
class PredictRequest:
    """What was asked of `fedgraft predict`. `cohort` is a site whose way of reading its data is to be used."""

    model: str
    data: Path
    out: Path
    site: Path | None = None
    heat: tuple[str, ...] = ()
    task: str | None = None
    of: str | None = None
    adapt: bool = False
    accept: tuple[str, ...] = ()
    dicom: tuple[str, ...] = ()
    kind: str | None = None
    cohort: Path | None = None
    keys: tuple[str, ...] = ()
    """key=value, of a cohort."""
    sets: str | None = None
    """Whose conformal sets: a site of the run, or "all"."""


def predict(asked: PredictRequest) -> None:
    """Write `predictions.csv`, and overlays if asked for; private, since files may be named by patients."""
    with _allowed(asked):
        _predict(asked)


def _allowed(asked: PredictRequest) -> AbstractContextManager[None]:
    """As a site reads its data, no code of others runs but what its policy lists; elsewhere what is installed may."""
    places = (place for place in (asked.cohort, asked.site) if place is not None)
    place = next((place for place in places if place.is_file() or is_site(place)), None)
    if place is None:
        return nullcontext()
    return allowed_to_look((read_config(place) if place.is_file() else read_site(place)).policy)


def _predict(asked: PredictRequest) -> None:
    if asked.out.exists() and any(asked.out.iterdir()):
        raise InputError(f"{asked.out} is not empty.", fix="Choose another --out.")
    if wrong := [name for name in asked.heat if name not in HEATS]:
        raise InputError(f"No heat map is called {wrong[0]!r}{instead(wrong[0], HEATS)}.")
    if unknown := [kind for kind in asked.accept if kind not in DERIVED]:
        raise InputError(f"No kind of DICOM object is called {unknown[0]!r}{instead(unknown[0], DERIVED)}.")
    demand_place(asked.out)
    reader = LoadedModel(asked.model, asked.site, everything=True)
    sets = {} if asked.sets is None else sets_of(reader, asked.sets)
    reading = _reading(asked)
    kinds = kinds_of(asked.dicom, reader, heat=bool(asked.heat))
    if isinstance(reader.input, TableInput) and (asked.heat or asked.adapt):
        raise InputError("--heat and --adapt are for images, and this model is for tables.", fix="Leave them out.")
    task = _task(reader, asked)
    found = read_cases(asked.data, reader.input, reading)
    usable = found.usable
    make_folder(asked.out)
    if asked.adapt:
        reader.adapt(usable)
    if kinds:
        from fedgraft.client.inference.dicom.writing import DicomOut  # needs highdicom

        with DicomOut(kinds, reader, asked.out, usable) as objects:
            rows = _rows(reader, usable, (task, asked, sets), objects)
        say(objects.says)
    else:
        rows = _rows(reader, usable, (task, asked, sets))
    rows += [one.cells for one in found.all if one.problem]
    write_atomic(asked.out / "predictions.csv", _table(rows), private=True)
    _say_read(reader, asked, found)
    if not isinstance(reader.input, TableInput):
        _say_ood(reader, rows)
    for line in (*thresholds(reader), *said_of_sets(asked.sets or "", sets)):
        say(line)
    say("Not a medical device: the model was not validated for any use.")


def _reading(asked: PredictRequest) -> Reading:
    """How the data are to be read: as the site of --cohort reads its own, and by what was typed beside it."""
    typed: dict[str, Any] = {"kind": asked.kind} if asked.kind is not None else {}
    for item in asked.keys:
        if fault := override(typed, item):
            raise InputError(f"{fault}.")
    if asked.accept:
        typed["accept"] = asked.accept
    found = Reading.of(asked.cohort).updated(Reading.of(typed))
    if asked.site is not None and asked.cohort is None and is_site(asked.site):
        own = Reading.of(asked.site).keys
        if odd := [key for key, value in own.items() if (key, value) != ("frames", "middle") and key not in found.keys]:
            say(
                f"The site of {asked.site} reads its own data by {', '.join(odd)} of its cohort; to read these so as "
                f"well, add --cohort {asked.site}"
            )
    return found


def _say_read(reader: LoadedModel, asked: PredictRequest, found: InputCases) -> None:
    """How many cases were used, and what is odd."""
    what = "rows" if isinstance(reader.input, TableInput) else "images"
    say(f"{len(found.usable)} {what} of {asked.data}: {asked.out / 'predictions.csv'}")
    if unused := len(found.all) - len(found.usable):
        say(f"{unused} files could not be used; the table says why.")
    for problem, count in sorted(found.odd.items()):
        say(f"{problem.replace('_', ' ')}: {count}")


def _rows(
    reader: LoadedModel,
    usable: Sequence[InputCase],
    what: tuple[str, PredictRequest, Sets],
    objects: DicomOut | None = None,
) -> list[dict[str, str]]:
    """A row for each image; masks, overlays and `objects` are written on the way."""
    task, asked, sets = what
    rows: list[dict[str, str]] = []
    for start in range(0, len(usable), _BATCH):
        some = usable[start : start + _BATCH]
        said = reader.answers(reader.loader(some))
        far = None if isinstance(reader.input, TableInput) else reader.distances(some)
        maps = _overlays(reader, some, said.get(task, np.zeros(0)), task, asked)
        for at, (one, drawn) in enumerate(zip(some, maps, strict=True)):
            row = one.cells
            own, number = {name: answers[at] for name, answers in said.items()}, start + at + 1
            row |= answer_row(reader, own, asked.out, number, sets)
            if objects is not None:
                objects.add(one, own, drawn)
            rows.append(row | _ood(reader, far, at) | _write_overlays(drawn, asked.out, number))
    return rows


def export_model(model: str, to: str, out: Path, site: Path | None) -> None:
    """Write a model for other programs, and say where. InputError as `exported`."""
    say(f"{exported(model, to, out, site)}: {to}; model.json says how it is to be used")
    say("Not a medical device: the model was not validated for any use.")


def exported(model: str, to: str, out: Path, site: Path | None) -> Path:
    """Write a model for other programs into the new folder `out`; the folder. InputError for an unknown form."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    kind = next((one for one in kinds if one == to), None)
    if kind is None:
        raise InputError(f"to {to}: there is no such form{instead(to, kinds)}.")
    if kind == "safetensors" and site is not None:
        raise InputError("A site's own entries are no part of the weights' file.", fix="Use --to onnx or torchscript.")
    return export(LoadedModel(model, site, everything=True), model, kind, out)


def _task(reader: LoadedModel, asked: PredictRequest) -> str:
    """The task of the overlays; "" if none is asked for and there is none with classes."""
    tasks = {task.name: task.classes for task in reader.tasks}
    if not tasks and not asked.heat and asked.task is None:
        return ""
    name = asked.task or next(iter(tasks), "")
    if name not in tasks:
        raise InputError(f"The model has no task {name!r}{instead(name, tasks)}.")
    if asked.of is not None and asked.of not in tasks[name]:
        raise InputError(f"Task {name!r} has no class {asked.of!r}{instead(asked.of, tasks[name])}.")
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
    reader: LoadedModel, some: Sequence[InputCase], shares: np.ndarray, task: str, asked: PredictRequest
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
