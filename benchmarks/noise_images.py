"""A cohort of noise, for timings that do not look at what is learnt."""

from __future__ import annotations

import torch

from fedgraft.client.data.cohorts.cohort import Cohort


def cohort(images: int, size: int) -> Cohort:
    """Colour images of two classes in turn, as stored, all of them for training, each of a patient of its own."""
    inputs = torch.randint(-32768, 32767, (images, 3, size, size), dtype=torch.int16)
    splits = {"train": torch.arange(images), "val": torch.arange(0), "test": torch.arange(0)}
    return Cohort("noise", inputs, {"cls": torch.arange(images) % 2}, tuple(map(str, range(images))), splits, (), {})
