"""The parts of a shared cohort on disk: a file for each site, and what was dealt out, written down with its seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, private_folder, write_json
from fedgraft.simulations.partitions.partition import ByColumn, BySizes, Partition, deal
from fedgraft.simulations.partitions.shared_cohort import Shared, counts, empty_cells, open_shared

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
RECORD = "partition.json"


def make_parts(partition: Partition, seed: int, home: Path) -> tuple[dict[str, CohortSpec], dict[str, Any]]:
    """The cohort of every site, and a record of what each got, by what and from which seed.

    Files are written below `home`, readable by their owner alone, in a folder that follows from what is in them.
    InputError if a site stays empty, or a value of a column cannot be a site's name.
    """
    by, source = partition.by, partition.cohort.labels or partition.cohort.root
    name = by.column if isinstance(by, ByColumn) else None if isinstance(by, BySizes) else by.label
    shared = open_shared(partition.cohort, name)
    if isinstance(by, ByColumn):
        empty_cells(shared, source, by.column)
    rows = _rows(partition, shared, seed)
    record: dict[str, Any] = {"seed": seed, "by": by.model_dump(mode="json"), "of": str(source)}
    record["sites"] = {site: counts(shared, own) for site, own in rows.items()}
    record["digest"] = _digest(partition, shared, rows)
    folder = home / record["digest"][:16]
    with private_folder(folder):
        cohorts = {}
        for site, own in rows.items():
            (folder / site).mkdir(exist_ok=True)
            cohorts[site] = shared.write(folder / site, own)
        write_json(folder / RECORD, record)
    return cohorts, record


def _rows(partition: Partition, shared: Shared, seed: int) -> dict[str, list[int]]:
    """The positions of every site's cases, in order."""
    if isinstance(partition.by, ByColumn):  # row by row: a patient may have been at two hospitals
        sites = [_site_name(value) for value in shared.labels]
        _demand_different(shared.labels)
    else:
        owner = deal(shared.by_patient(), partition.by, seed)
        sites = [owner[patient] for patient in shared.patients]
    return {site: [at for at, own in enumerate(sites) if own == site] for site in sorted(set(sites))}


def _site_name(value: str) -> str:
    """A value of a column as the name of a site."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", value).strip("_-")[:32]
    if not _SITE.fullmatch(name):
        raise InputError(f"partition: {value!r} cannot be the name of a site.", fix="Letters and digits make one.")
    return name


def _demand_different(values: Any) -> None:
    named: dict[str, str] = {}
    for value in values:
        other = named.setdefault(_site_name(value).lower(), value)
        if other != value:
            raise InputError(f"partition: {other!r} and {value!r} would be one site.", fix="Rename one.")


def _digest(partition: Partition, shared: Shared, rows: Mapping[str, Any]) -> str:
    content = {
        "partition": partition.model_dump(mode="json"),
        "patients": list(shared.patients),
        "labels": list(shared.labels),
        "rows": rows,
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()
