"""Pulling studies: one after the other, in order, each object once; what was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fedgraft.client.data.pacs.dicomweb import Dicomweb, Entry, NotGivenError, is_uid, uid, values
from fedgraft.client.data.pacs.store import Place, PulledObject, Store, StudyRecord
from fedgraft.client.data.pacs.work_list import MODALITY, wishes
from fedgraft.common.base.errors import InputError, RunError

_LATER = "Repeat the command later: it goes on where it was."


@dataclass(frozen=True)
class Wanted:
    """Which studies: of a table, of a search, or with neither all that an earlier pull left waiting or failed."""

    table: Path | None = None
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass
class Outcome:
    """How it went, in studies; `empty` ones have no series of the modality that was asked for.

    `failed` says why by UID, `not_found` by the place of the row.
    """

    asked: int = 0
    pulled: int = 0
    already: int = 0
    empty: int = 0
    waiting: int = 0
    objects: int = 0
    bytes: int = 0
    stopped: str = ""
    """Why the rest was not asked for: the archive is away, or denies this site."""
    failed: dict[str, str] = field(default_factory=dict)
    not_found: dict[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is there."""
        return not self.failed and not self.not_found and not self.waiting


def pull(pacs: Dicomweb, store: Store, wanted: Wanted, progress: Callable[[str], None], *, dry: bool) -> Outcome:
    """Search, then retrieve. A `dry` one says what it would do, and writes nothing. RunError if the search fails."""
    outcome = Outcome()
    if dry:
        studies = _studies(pacs, store, wanted, outcome)
        outcome.already = sum(store.is_whole(study, modality) for study, modality in studies.items())
        outcome.waiting = outcome.asked - outcome.already
        return outcome
    with store.alone():
        studies = _studies(pacs, store, wanted, outcome)
        left = {study: modality for study, modality in studies.items() if not store.is_whole(study, modality)}
        outcome.already = len(studies) - len(left)
        for study, modality in left.items():
            store.note(study, StudyRecord(modality=modality))
        try:
            _pull_all(pacs, store, left, outcome, progress)
        except RunError as error:
            outcome.stopped = str(error)
            outcome.waiting = len(left) - outcome.pulled - outcome.empty - len(outcome.failed)
        finally:
            store.write_manifest()
    return outcome


def _studies(pacs: Dicomweb, store: Store, wanted: Wanted, outcome: Outcome) -> dict[str, str]:
    """The modality that is wanted of each study, "" for all; in the order in which they were asked for."""
    modality = wanted.keys.get(MODALITY, "")
    found: dict[str, str] = {}
    if wanted.table is None and not wanted.keys:
        found = {study: record.modality for study, record in store.known().items() if record.state != "done"}
        if not found and not store.known():
            raise InputError("Nothing says which studies.", fix="Give --worklist FILE or --query KEY=VALUE.")
    else:
        for wish in list(wishes(wanted.table, wanted.keys)):
            try:
                named = wish.studies(pacs)
                found |= dict.fromkeys(filter(is_uid, named), modality)
                if odd := sum(not is_uid(one) for one in named):
                    outcome.not_found[f"{wish.where}, {odd} of {len(named)}"] = "names them by what is no UID"
            except NotGivenError as error:
                outcome.not_found[wish.where] = error.why
                if error.away:
                    raise RunError(str(error), fix=_LATER) from None
    outcome.asked = len(found) + len(outcome.not_found)
    return found


def _pull_all(
    pacs: Dicomweb, store: Store, left: Mapping[str, str], outcome: Outcome, progress: Callable[[str], None]
) -> None:
    for number, (study, modality) in enumerate(left.items(), 1):
        progress(f"study {number} of {len(left)}: {study}")
        try:
            objects = _pull(pacs, store, study, modality)
        except NotGivenError as error:
            outcome.failed[study] = error.why
            store.note(study, StudyRecord(state="failed", why=error.why, modality=modality))
            if error.away:
                raise RunError(f"{error} The rest was not asked for.", fix=_LATER) from None
            continue
        store.note(study, StudyRecord(state="done", modality=modality, objects=tuple(objects)))
        outcome.pulled += bool(objects)
        outcome.empty += not objects
        outcome.objects += len(objects)
        outcome.bytes += sum(one.bytes for one in objects)


def _pull(pacs: Dicomweb, store: Store, study: str, modality: str) -> list[PulledObject]:
    """All objects of a study. NotGivenError for the first that cannot be had, once all others are there."""
    at = f"/studies/{study}/series"
    listed = pacs.search(at)
    if not listed:
        raise NotGivenError("has no such study")
    wanted = [one for one in listed if not modality or modality in values(one, MODALITY)]
    places: list[Place] = []
    unlisted = 0
    for one in wanted:
        series = uid(one, "SeriesInstanceUID")
        objects = {uid(two, "SOPInstanceUID"): None for two in pacs.search(f"{at}/{series}/instances")}
        places += [(study, series, sop) for sop in objects]
        unlisted += max(0, _counted(one) - len(objects))
    pulled = _pull_objects(pacs, store, places)
    if unlisted:
        raise NotGivenError(f"lists {len(places)} of {len(places) + unlisted} objects of the study")
    if wanted and not places:
        raise NotGivenError("lists no object of the study")
    return pulled


def _counted(series: Entry) -> int:
    """How many objects a series has, as the archive counts them; 0 where it does not say."""
    told = values(series, "NumberOfSeriesRelatedInstances")
    return int(told[0]) if told and told[0].isascii() and told[0].isdigit() and len(told[0]) < 10 else 0


def _pull_objects(pacs: Dicomweb, store: Store, places: Iterable[Place]) -> list[PulledObject]:
    pulled, failed = [], None
    for place in places:
        if (there := store.present(place)) is None:
            study, series, sop = place
            try:
                path = pacs.retrieve(f"/studies/{study}/series/{series}/instances/{sop}", partial(store.take, place))
            except NotGivenError as error:
                if error.away:
                    raise
                failed = failed or error
                continue
            there = store.keep(place, path)
        pulled.append(there)
    if failed is not None:
        raise failed
    return pulled
