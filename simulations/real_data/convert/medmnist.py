"""MedMNIST: one `.npz` with images, labels and their splits; whose an image is nobody says."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fedgraft.common.base.errors import InputError
from fedgraft.simulations.real_data.convert.collection import CollectedPicture, Converted, write_collection

_SPLITS = ("train", "val", "test")


def medmnist(source: Path, out: Path, size: int) -> Converted:
    """SOURCE is the file, such as pneumoniamnist.npz; classes are its numbers, and its split stands in a column.

    The site is the file's name. Every image counts as a patient of its own, which it may not be.
    """
    try:
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for split in _SPLITS for name in (f"{split}_images", f"{split}_labels")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: is no file of MedMNIST ({type(error).__name__}).") from None
    site = source.stem.lower()
    for split in _SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if len(images) != len(labels) or images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise InputError(f"{source}: {split}_images are no 8-bit images with a label each.")
        if labels.reshape(len(labels), -1).shape[1] != 1:
            raise InputError(f"{source}: has several labels an image, which is not read yet.")

    def pictures() -> Iterator[CollectedPicture]:
        for split in _SPLITS:
            labels = arrays[f"{split}_labels"].reshape(-1)
            for number, (image, label) in enumerate(zip(arrays[f"{split}_images"], labels, strict=True)):
                name = f"{split}_{number:06d}"
                row = {"patient": f"{site}-{name}", "label": str(int(label)), "split": split}
                yield CollectedPicture(Image.fromarray(image), name, row)

    return write_collection(out, site, pictures(), size)
