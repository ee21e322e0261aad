"""Generated hospitals on disk: images as DICOM, masks, and tables, in one folder per site."""

from __future__ import annotations

import csv
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import home, read_json, sha256_file, write_json
from fedgraft.common.base.seeds import derive
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.partitions.parts import make_parts
from fedgraft.simulations.phantoms.patients import (
    ROW,
    CancerPart,
    Patient,
    cancer_parts,
    draw_patient,
)
from fedgraft.simulations.phantoms.phantoms import (
    Array,
    Modality,
    Phantom,
    render,
)
from fedgraft.simulations.phantoms.scanners import acquire, mark, store
from fedgraft.simulations.phantoms.scenario import PhantomSite, Scenario, SiteEntry
from fedgraft.simulations.real_data.parts import part_of
from fedgraft.simulations.real_data.places import demand_there

if TYPE_CHECKING:
    from fedgraft.simulations.phantoms.dicom import Shot

IMAGE_ROW = ("sop_uid", "study_uid", "series_uid", "PatientID", "file", "finding", "diameter_mm", "mask")
"""Columns of images.csv, which holds the truth: `finding` is never noisy and never missing."""
_MARK = "scenario.json"
_BATCH_PIXELS = 64 * 64 * 64

Shots = list[tuple[Patient, int, Phantom]]
Masks = NDArray[np.bool_]


def make_hospitals(scenario: Scenario, out: Path) -> dict[str, CohortSpec]:
    """Write the scenario's generated sites to the folder `out`, and say where the cohorts of all its sites are.

    A phantom site gets OUT/SITE/dicom, masks, patients.csv and images.csv; a table site OUT/SITE/table.csv. A folder
    of the same scenario is used as it is. The folder appears whole or not at all. InputError if `out` holds something
    else or cannot be written.
    """
    out = out.resolve()
    if any(site.cohort is None for site in scenario.sites) and not _there(scenario, out):
        _build(scenario, out)
    demand_there({site.name: site.cohort for site in scenario.sites if site.cohort is not None}, scenario.originals)
    return {site.name: _cohort(site, out / site.name, scenario.seed) for site in scenario.sites}


def _there(scenario: Scenario, out: Path) -> bool:
    """Whether `out` holds this scenario; InputError if it holds another, or anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    fix = "Choose another folder, or remove this one."
    if not (out / _MARK).is_file():
        raise InputError(f"{out} is in use and holds no generated hospitals.", fix=fix)
    found = read_json(out / _MARK)
    if not isinstance(found, dict) or found.get("digest") != scenario.digest:
        raise InputError(f"{out} holds hospitals of another scenario, or of another version of it.", fix=fix)
    if (wrong := _changed(out, found.get("files"))) is not None:
        raise InputError(
            f"{wrong}: is not as it was generated.", fix=f"Remove {out}, and the hospitals are generated anew."
        )
    return True


def _changed(out: Path, files: object) -> Path | None:
    """A file that was changed or lost since the hospitals were generated; None if all are as they were."""
    known = files if isinstance(files, dict) and files else {_MARK: ""}
    now = _digests(out)
    return next((out / name for name, digest in known.items() if now.get(name) != digest), None)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files, by path below the folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / _MARK)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def _build(scenario: Scenario, out: Path) -> None:
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        tables = cancer_parts(scenario) if any(site.table for site in scenario.sites) else {}
        for site in scenario.sites:
            if site.phantom is not None:
                _write_phantoms(site.phantom, site.name, derive(scenario.seed, "site", site.name), temporary)
            elif site.table is not None:
                _write_part(tables[site.name], temporary / site.name)
        facts = {"scenario": scenario.name, "digest": scenario.digest, "files": _digests(temporary)}
        write_json(temporary / _MARK, facts)
        _move(scenario, temporary, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}.", fix="Choose another folder.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(scenario: Scenario, temporary: Path, out: Path) -> None:
    if out.exists() and _there(scenario, out):
        return  # another process was quicker
    if out.exists():
        out.rmdir()
    temporary.rename(out)


def _write_phantoms(spec: PhantomSite, name: str, seed: int, folder: Path) -> None:
    from fedgraft.simulations.phantoms.dicom import DicomWriter, Shot  # pydicom, which who has own images needs not

    site = folder / name
    (site / "dicom").mkdir(parents=True)
    (site / "masks").mkdir()
    patients = [draw_patient(spec, seed, index) for index in range(spec.patients)]
    _write_csv(site / "patients.csv", ROW, (patient.row for patient in patients))
    rows: list[tuple[str | int | float, ...]] = []
    for modality in spec.modality:
        writer = DicomWriter(spec.scanner, modality, name)
        for shots, grey, masks in grey_images(spec, modality, patients):
            pixels = store(grey, spec.scanner, modality)
            for (patient, number, phantom), image, mask in zip(shots, pixels, masks, strict=True):
                shot = Shot(patient.id, patient.age, patient.sex, number, str(seed))
                stem = f"{patient.id}_{number}"
                (site / "dicom" / f"{stem}.dcm").write_bytes(writer.file(image, shot))
                Image.fromarray(mask).save(site / "masks" / f"{stem}.png", compress_level=1)
                rows.append(_image_row(shot, patient, phantom, spec))
    _write_csv(site / "images.csv", IMAGE_ROW, sorted(rows, key=lambda row: row[4]))


def grey_images(
    spec: PhantomSite, modality: Modality, patients: Sequence[Patient]
) -> Iterator[tuple[Shots, Array, Masks]]:
    """The images (N, matrix, matrix) of some patients as the scanner sees them, before they are stored; and masks.

    So many at a time as stay in the processor's cache. Each image depends on nothing but its patient and number.
    """
    shots = [
        (patient, number, phantom)
        for patient in patients
        if patient.modality == modality
        for number, phantom in enumerate(patient.phantoms, start=1)
    ]
    size = max(1, _BATCH_PIXELS // spec.scanner.matrix**2)
    for start in range(0, len(shots), size):
        some = shots[start : start + size]
        images, masks = render([phantom for _, _, phantom in some], spec.scanner.matrix)
        seeds = [derive(patient.seed, "scan", number) for patient, number, _ in some]
        grey = acquire(images, spec.scanner, modality, seeds)
        mark(grey, np.array([patient.finding != "none" for patient, _, _ in some]), spec.scanner)
        yield some, grey, masks


def _image_row(shot: Shot, patient: Patient, phantom: Phantom, spec: PhantomSite) -> tuple[str, ...]:
    stem = f"{patient.id}_{shot.number}"
    # The pose magnifies a little, so that a patient's images differ in size.
    diameter_mm = phantom.lesion.diameter * phantom.pose[3] * spec.scanner.field_mm / 2
    uids = (str(shot.uid("image")), str(shot.uid("study")), str(shot.uid("series")))
    truth = (patient.finding, f"{diameter_mm:.2f}")
    return (*uids, patient.id, f"dicom/{stem}.dcm", *truth, f"masks/{stem}.png")


def _write_part(part: CancerPart, folder: Path) -> None:
    folder.mkdir()
    rows = zip(part.ids, part.diagnoses, part.values.tolist(), strict=True)
    header = ("PatientID", "diagnosis", *part.columns)
    _write_csv(folder / "table.csv", header, ((number, diagnosis, *values) for number, diagnosis, values in rows))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _cohort(site: SiteEntry, folder: Path, seed: int) -> CohortSpec:
    if site.cohort is not None:
        return site.cohort if site.part is None else part_of(site.cohort, site.part, seed)
    if site.table is not None:
        return CohortSpec(kind="table", root=folder / "table.csv", patient_column="PatientID")
    masks = folder / "masks" if site.mask_images else None
    labels = folder / "patients.csv"
    return CohortSpec(kind="dicom", root=folder / "dicom", labels=labels, key_column="PatientID", mask_images=masks)


def hospitals_of(scenario: Scenario) -> Hospitals:
    """The scenario's hospitals, generated if they are phantoms and not there yet, or parts of one cohort."""
    if scenario.partition is not None:
        parts, record = make_parts(scenario.partition, scenario.seed, home() / "partitions")
        return Hospitals(parts, synthetic=False, allow_missing_sites=scenario.allow_missing_sites, partition=record)
    folder = home() / "phantoms" / f"{scenario.name}-{scenario.digest[:12]}"
    cohorts = make_hospitals(scenario, folder)
    faults = {site.name: site.faults for site in scenario.sites if site.faults is not None}
    policies = {site.name: site.policy for site in scenario.sites if site.policy is not None}
    sources = {site.name: cohorts[site.source] for site in scenario.sites if site.source is not None}
    public = {site.name for site in scenario.sites if site.public_source}
    return Hospitals(
        cohorts,
        faults,
        public_sources=public,
        sources=sources,
        policies=policies,
        synthetic=scenario.synthetic,
        allow_missing_sites=scenario.allow_missing_sites,
    )
