"""A folder of grey images with one table of labels, to which several hospitals can be added."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import write_atomic

COLUMNS = ("patient", "file", "label", "site", "detail", "split")


@dataclass(frozen=True)
class Converted:
    """What came of it: cases by label, patients, and what was left out by reason."""

    site: str
    labels: Counter[str]
    patients: int
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class CollectedPicture:
    """One image: where it is, or what is in it, and what its row says; `name` is its file's below the site's folder."""

    image: Path | Image.Image
    name: str
    row: Mapping[str, str]


def write_collection(out: Path, site: str, pictures: Iterable[CollectedPicture], size: int) -> Converted:
    """Write the images as 8-bit grey PNG, longest side `size`, and their rows into OUT/labels.csv.

    Hospitals that are there already stay; InputError if this one is, or if nothing could be read.
    """
    table = out / "labels.csv"
    before = _rows(table)
    if any(row["site"] == site for row in before):
        raise InputError(f"{table}: has images of {site} already.", fix="Choose another --out.")
    rows, left_out = [], Counter[str]()
    for picture in pictures:
        target = out / "images" / site / f"{picture.name}.png"
        if not _write(picture.image, target, size):
            left_out["unreadable"] += 1
            continue
        file = f"{site}/{picture.name}.png"
        rows.append({**dict.fromkeys(COLUMNS, ""), **picture.row, "file": file, "site": site})
    if not rows:
        raise InputError(f"No image of {site} could be read.", fix="Is SOURCE the folder that was unpacked?")
    write_atomic(table, table_of(COLUMNS, [*before, *rows]))
    labels = Counter(row["label"] for row in rows)
    return Converted(site, labels, len({row["patient"] for row in rows}), left_out)


def table_of(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    """Rows as the bytes of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def images_in(folder: Path) -> Iterator[Path]:
    """Every PNG and JPEG below a folder, in a fixed order."""
    return iter(sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg")))


def _rows(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [{**dict.fromkeys(COLUMNS, ""), **row} for row in csv.DictReader(file)]


def _write(image: Path | Image.Image, target: Path, size: int) -> bool:
    """Whether the image could be read, and is written."""
    try:
        with Image.open(image) if isinstance(image, Path) else image as opened:
            grey = opened.convert("L")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return False
    if max(grey.size) > size:
        grey.thumbnail((size, size), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    grey.save(target)
    return True
