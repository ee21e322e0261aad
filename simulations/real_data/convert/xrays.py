"""Chest X-rays, pneumonia or normal: NIH ChestX-ray14, and Kermany's of children in Guangzhou."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedgraft.common.base.errors import InputError
from fedgraft.simulations.real_data.convert.collection import CollectedPicture, Converted, images_in, write_collection

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_FINDING, _NONE = "Pneumonia", "No Finding"
_NAMED = re.compile(r"(person|IM-)0*(\d+)", re.IGNORECASE)
_CAUSE = re.compile(r"bacteria|virus", re.IGNORECASE)


def nih_cxr14(source: Path, out: Path, size: int) -> Converted:
    """NIH ChestX-ray14: every image with pneumonia among its findings, and as many with none, drawn with seed 0.

    SOURCE holds `Data_Entry_2017*.csv` and the images, in folders of any name.
    """
    table = next((source / name for name in _TABLES if (source / name).is_file()), None)
    if table is None:
        raise InputError(f"{source}: there is no {' or '.join(_TABLES)}.", fix="It comes with the images.")
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"Image Index", "Finding Labels", "Patient ID"} <= rows[0].keys():
        raise InputError(f"{table}: has no column 'Image Index', 'Finding Labels' or 'Patient ID'.")
    there = {path.name: path for path in images_in(source)}
    known = [row for row in rows if row["Image Index"] in there]
    found = [row for row in known if _FINDING in row["Finding Labels"].split("|")]
    none = [row for row in known if row["Finding Labels"] == _NONE]
    chosen = np.random.default_rng(0).permutation(len(none))[: len(found)]
    kept = [(row, "pneumonia") for row in found] + [(none[at], "normal") for at in sorted(chosen.tolist())]
    pictures = (
        CollectedPicture(
            there[row["Image Index"]],
            Path(row["Image Index"]).stem,
            {"patient": f"nih-{int(row['Patient ID']):08d}", "label": label},
        )
        for row, label in kept
    )
    converted = write_collection(out, "nih", pictures, size)
    converted.left_out.update({"in the table, and no file": len(rows) - len(known)})
    return converted


def kermany(source: Path, out: Path, size: int) -> Converted:
    """Kermany et al., children in Guangzhou: all images of the folders NORMAL and PNEUMONIA below SOURCE.

    Who a child is stands in the name, as personN or IM-N. The same number in `train` and `test` counts as one child.
    """
    skipped = [0]

    def pictures() -> Iterator[CollectedPicture]:
        for path in images_in(source):
            label = path.parent.name.lower()
            named = _NAMED.search(path.stem)
            if label not in ("normal", "pneumonia") or named is None:
                skipped[0] += 1
                continue
            kind = "person" if named[1].lower() == "person" else "im"
            cause = _CAUSE.search(path.stem)
            row = {"patient": f"gz-{kind}{int(named[2])}", "label": label, "detail": cause[0].lower() if cause else ""}
            yield CollectedPicture(path, f"{label}_{path.stem}", row)

    converted = write_collection(out, "guangzhou", pictures(), size)
    converted.left_out.update({"of another folder, or without a patient's number": skipped[0]})
    return converted
