"""Which studies are wanted: the rows of a table, or what a search finds. Nothing of a patient is kept or shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedgraft.client.data.pacs.dicomweb import Dicomweb, NotGivenError, is_uid, values
from fedgraft.client.data.pacs.fitting import ANY, fits
from fedgraft.client.data.tables.csv_tables import read_csv
from fedgraft.common.base.disk import why_no_file
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.config.suggest import instead

STUDY, MODALITY = "StudyInstanceUID", "Modality"
_COLUMNS = (STUDY, "AccessionNumber", "PatientID")
_KEYS = (*_COLUMNS, MODALITY, "StudyDate", "StudyTime", "StudyID", "PatientName", "ReferringPhysicianName")
"""By what QIDO-RS searches for studies (PS3.18, 10.6.1.2), and the modality of their series."""
_DATES = re.compile(r"\d{8}|\d{8}-|-\d{8}|\d{8}-\d{8}")


@dataclass(frozen=True)
class Wish:
    """What one row or search asks for: `where` it stands, for messages, and the keys, of which some are a patient's."""

    where: str
    keys: Mapping[str, str] = field(repr=False)

    def studies(self, pacs: Dicomweb) -> list[str]:
        """What the studies call themselves. NotGivenError if there is none; RunError if they are not what was asked."""
        if list(self.keys) == [STUDY]:
            return [self.keys[STUDY]]
        found = pacs.search("/studies", self.keys)
        if not found:
            raise NotGivenError("has no such study")
        if strange := sum(not fits(entry, self.keys) for entry in found):
            raise RunError(
                f"{self.where}: of {len(found)} studies that the PACS answers with, {strange} are not what was asked "
                "for: it does not search by these keys.",
                fix=f"Ask for studies by {STUDY} in --worklist.",
            )
        return [(values(entry, STUDY) or [""])[0] for entry in found]


def keys_of(texts: Sequence[str]) -> dict[str, str]:
    """The keys of a search from texts like "StudyDate=20200101-20201231". InputError for what cannot be searched by."""
    keys: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if name not in _KEYS or not value:
            # What is no word, or has no "=", can be a patient's.
            what = f"; {name!r} is no key" if "=" in text and name.isalpha() and name not in _KEYS else ""
            raise InputError(f"--query: write KEY=VALUE{what}{instead(name, _KEYS)}.")
        if name in keys:
            raise InputError(f"--query: {name} is there twice.", fix="Pull one after the other.")
        keys[name] = value
    if any(letter in keys.get(MODALITY, "") for letter in ANY):
        raise InputError(f"--query: {MODALITY} is one word, as DX.")
    if not _DATES.fullmatch(keys.get("StudyDate", "20200101")):
        raise InputError("--query: StudyDate is written as 20200131, or from-to as 20200101-20201231.")
    return keys


def wishes(table: Path | None, keys: Mapping[str, str]) -> Iterator[Wish]:
    """What is asked for: each row of the table with these keys as well, or without a table what fits the keys."""
    keys = {("ModalitiesInStudy" if name == MODALITY else name): value for name, value in keys.items()}
    if table is None:
        yield Wish("--query", keys)
        return
    if not table.is_file():
        raise InputError(f"{table}: cannot be read: {why_no_file(table)}.", fix="--worklist names a CSV file.")
    rows = read_csv(table)
    columns = [name for name in _COLUMNS if name in rows.rows[0]]
    if not columns:
        raise InputError(
            f"{table}: has no column that says which studies.",
            fix=f"Name a column {STUDY}, AccessionNumber or PatientID.",
        )
    seen = set()
    for index, row in enumerate(rows.rows):
        where = rows.where(index)
        own = {name: row[name] for name in columns if row[name]}
        if not own:
            raise InputError(f"{where}: says no study.", fix=f"Fill in {' or '.join(columns)}.")
        if STUDY in own:
            own = {STUDY: own[STUDY]}
            if not is_uid(own[STUDY]):
                raise InputError(f"{where}: its {STUDY} is no UID.")
        elif any(letter in value for value in own.values() for letter in ANY):
            raise InputError(f"{where}: has a wildcard (* ? \\), which would fit other patients too.")
        if (key := tuple(own.items())) not in seen:
            seen.add(key)
            yield Wish(where, own | ({} if STUDY in own else keys))
