"""Passports that sites have handed on, in the folder of the run that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import make_folder, write_json
from fedgraft.common.evidence.passport import passport_faults, read_passport
from fedgraft.common.evidence.signed_parts import Document
from fedgraft.server.runs.run_folder import RunFolder

_FOLDER = "passports"


def collect_passport(run: Path, path: Path, keys: Mapping[str, str] | None) -> Document:
    """Put a site's passport into the run's folder. `keys` are the sites' public keys in their consortium, if any.

    InputError, and nothing is kept, if it is not as it was signed, of another run, or by another key than the site's.
    """
    document = read_passport(path)
    faults = list(passport_faults(document))
    if not faults:
        head, digest = document.head(), RunFolder(run).study().digest
        if head.study != digest:
            faults.append(f"it is about study {head.study[:12]}, and this run is of {digest[:12]}")
        if keys is not None and keys.get(head.site) != head.key:
            faults.append(f"it is not signed with the key that {head.site} has in the consortium")
    if faults:
        raise InputError(f"{path}: {'; '.join(faults)}.", fix="Ask the site for it again.")
    make_folder(run / _FOLDER)
    write_json(run / _FOLDER / f"{document.head().site}.json", document.plain())
    return document


def collected(run: Path) -> dict[str, Document]:
    """The passports in a run's folder by site, each as its site signed it; InputError names one that is not."""
    found = {}
    for path in sorted((run / _FOLDER).glob("*.json")):
        document = read_passport(path)
        if faults := passport_faults(document):
            raise InputError(f"{path}: {'; '.join(faults)}.", fix="Collect it again: fedgraft server collect.")
        if document.head().study != RunFolder(run).study().digest:
            raise InputError(f"{path}: is about another study.", fix="Remove it.")
        found[document.head().site] = document
    return found
