"""Phantom images: anatomy of three modalities with a finding whose boundary is known exactly.

A patient is a few numbers drawn from its own stream: the anatomy, and a finding whose outline is the radial curve
r(theta) = R (1 + sum_k a_k cos(k theta + p_k)). The finding looks alike in all modalities while the anatomy differs,
so that what is learnt on one modality is of use on another. Phantoms test the machinery; they say nothing about
clinical benefit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from fedgraft.common.base.seeds import derive

Array = NDArray[Any]
"""Floats; rendered images are float32."""
Modality = Literal["ct", "mr", "xr"]
Finding = Literal["none", "smooth", "spiculated", "ring"]
FINDINGS: tuple[Finding, ...] = get_args(Finding)
"""The classes, in the order in which prevalences are counted up."""
ORGANS: dict[Modality, str] = {"ct": "thorax_ct", "mr": "brain_mr", "xr": "thorax_xr"}
"""The organ column: one per modality."""

HARMONICS = np.arange(12)
_SMOOTH, _SPICULATED = (2, 3), (5, 6, 7, 8, 9, 10, 11)
_ANATOMY = 16
_RING_HOLE = 0.6
"""Radius of a ring's dark middle, as a share of the outline's."""
_EDGE = 0.012
"""Softness of a finding's edge, as a share of the image's half width."""


@dataclass(frozen=True)
class Lesion:
    """A finding in patient space: the half width of the image is 1, x to the right, y down.

    `radius` is the R of the outline, `amplitudes` and `phases` its a_k and p_k for k = 0..11; `strength` is how much
    brighter it is than what is around it, as a share of the modality's range.
    """

    kind: Finding
    radius: float
    strength: float
    place: tuple[float, float]
    amplitudes: Array
    phases: Array

    @property
    def diameter(self) -> float:
        """Diameter of the disc of equal area, from the integral of r(theta)^2 / 2; 0 without a finding."""
        if self.kind == "none":
            return 0.0
        return float(2 * self.radius * np.sqrt(1 + 0.5 * np.sum(np.square(self.amplitudes))))


@dataclass(frozen=True)
class Phantom:
    """One image before any scanner: the patient's anatomy and finding, seen in this image's pose.

    `anatomy` are numbers in [-1, 1] that shape the organs; `pose` is shift x, shift y, turn (radians), scale.
    """

    modality: Modality
    anatomy: Array
    lesion: Lesion
    pose: tuple[float, float, float, float]


@dataclass(frozen=True)
class PhantomFindings:
    """How findings look at a site: `size` is the range of diameters (half widths), `contrast` the mean strength."""

    size: tuple[float, float]
    contrast: float


def draw_phantoms(
    modality: Modality, kind: Finding, findings: PhantomFindings, seed: int, images: int
) -> tuple[Phantom, ...]:
    """A patient's images: same anatomy and finding, each in its own pose. Nothing but the arguments matters.

    Each image has its own stream, so that more images do not change the first ones.
    """
    rng = np.random.default_rng(derive(seed, "patient"))
    anatomy = rng.uniform(-1, 1, _ANATOMY).astype(np.float32)
    lesion = _draw_lesion(modality, kind, findings, rng)
    poses = (_draw_pose(derive(seed, "pose", index)) for index in range(images))
    return tuple(Phantom(modality, anatomy, lesion, pose) for pose in poses)


def render(phantoms: Sequence[Phantom], pixels: int) -> tuple[Array, NDArray[np.bool_]]:
    """Images (N, pixels, pixels) of phantoms of one modality, and the exact masks of their findings.

    The values' range 0 to 1 is the modality's: -1000 to 1000 HU for ct, the film's range for mr and xr. A ring's mask
    includes its hollow middle.
    """
    modality = phantoms[0].modality
    x, y = _grid(phantoms, pixels)
    anatomy = np.stack([phantom.anatomy for phantom in phantoms])[:, :, None, None]
    images = _DRAW[modality](anatomy, x, y)
    depth, mask = _finding(phantoms, x, y)
    images += depth
    return images, mask


def _draw_lesion(modality: Modality, kind: Finding, findings: PhantomFindings, rng: np.random.Generator) -> Lesion:
    low, high = findings.size
    diameter = rng.uniform(low, high)
    strength = findings.contrast * rng.uniform(0.8, 1.2)
    place = _place(modality, rng)
    amplitudes = np.zeros(len(HARMONICS), dtype=np.float32)
    if kind in ("smooth", "ring"):
        amplitudes[list(_SMOOTH)] = rng.uniform(0.02, 0.12, len(_SMOOTH))
    elif kind == "spiculated":
        # Two strong harmonics make distinct spikes; many weak ones would only blur into a wavy edge.
        chosen = rng.choice(_SPICULATED, 2, replace=False)
        amplitudes[chosen] = rng.uniform(0.18, 0.3, 2)
    phases = rng.uniform(0, 2 * np.pi, len(HARMONICS)).astype(np.float32)
    radius = diameter / 2 / np.sqrt(1 + 0.5 * float(np.sum(np.square(amplitudes))))
    return Lesion(kind, float(radius), float(strength), place, amplitudes, phases)


def _place(modality: Modality, rng: np.random.Generator) -> tuple[float, float]:
    """Where a finding may sit: in a lung, or in the brain's tissue."""
    side = rng.choice((-1.0, 1.0))
    if modality == "mr":
        angle, away = rng.uniform(-1.2, 1.2), rng.uniform(0.34, 0.46)
        return float(side * away * np.cos(angle)), float(1.1 * away * np.sin(angle))
    x, y = rng.uniform(0.32, 0.48), rng.uniform(-0.3, 0.35)
    return float(side * x), float(y)


def _draw_pose(seed: int) -> tuple[float, float, float, float]:
    rng = np.random.default_rng(seed)
    across, down = rng.uniform(-0.06, 0.06, 2)
    return float(across), float(down), float(rng.uniform(-0.08, 0.08)), float(rng.uniform(0.97, 1.03))


def _grid(phantoms: Sequence[Phantom], pixels: int) -> tuple[Array, Array]:
    """Patient coordinates of the centre of every pixel, each (N, pixels, pixels)."""
    axis = ((np.arange(pixels) + 0.5) / pixels * 2 - 1).astype(np.float32)
    pose = np.array([phantom.pose for phantom in phantoms], dtype=np.float32)[:, :, None, None]
    across, down = axis[None, None, :] - pose[:, 0], axis[None, :, None] - pose[:, 1]
    cos, sin = np.cos(pose[:, 2]) / pose[:, 3], np.sin(pose[:, 2]) / pose[:, 3]
    return across * cos + down * sin, down * cos - across * sin


def _finding(phantoms: Sequence[Phantom], x: Array, y: Array) -> tuple[Array, NDArray[np.bool_]]:
    lesions = [phantom.lesion for phantom in phantoms]

    def column(values: Sequence[float]) -> Array:
        return np.array(values, dtype=np.float32)[:, None, None]

    across = x - column([lesion.place[0] for lesion in lesions])
    down = y - column([lesion.place[1] for lesion in lesions])
    away, angle = np.hypot(across, down), np.arctan2(down, across)
    outline = np.ones_like(away)
    for k in (*_SMOOTH, *_SPICULATED):
        amplitude = column([lesion.amplitudes[k] for lesion in lesions])
        if amplitude.any():
            outline += amplitude * np.cos(k * angle + column([lesion.phases[k] for lesion in lesions]))
    outline *= column([lesion.radius for lesion in lesions])
    present = column([float(lesion.kind != "none") for lesion in lesions])
    hollow = column([float(lesion.kind == "ring") for lesion in lesions])
    depth = _step((outline - away) / _EDGE) - 1.4 * hollow * _step((outline * _RING_HOLE - away) / _EDGE)
    strength = column([lesion.strength for lesion in lesions])
    return depth * strength * present, (away < outline) & (present > 0)


def _ellipse(x: Array, y: Array, place: tuple[Array | float, Array | float], half: tuple[Array | float, ...]) -> Array:
    """Soft indicator of an ellipse: 1 inside, 0 outside, `half` are its half axes and the softness of its edge."""
    away = np.hypot((x - place[0]) / half[0], (y - place[1]) / half[1])
    return _step((1 - away) * (half[0] / half[2]))


def _step(values: Array) -> Array:
    """A soft step (sigmoid) from 0 to 1, which is 1/2 where a value is 0."""
    return np.asarray(expit(values))


def _chest_parts(a: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Body, lungs and heart of a chest, whose sizes differ between patients."""
    wide, tall = 0.86 + 0.05 * a[:, 0], 0.74 + 0.05 * a[:, 1]
    body = _ellipse(x, y, (0.0, 0.0), (wide, tall, 0.03))
    lung_x, lung_y = 0.4 + 0.03 * a[:, 2], 0.02 * a[:, 3]
    half = (0.27 + 0.03 * a[:, 4], 0.54 + 0.05 * a[:, 5], 0.03)
    lungs = _ellipse(x, y, (lung_x, lung_y), half) + _ellipse(x, y, (-lung_x, lung_y), half)
    heart = _ellipse(x, y, (0.1 + 0.05 * a[:, 6], 0.15 + 0.05 * a[:, 7]), (0.24 + 0.04 * a[:, 8], 0.28, 0.04))
    return body, np.minimum(lungs, 1), heart


def _vessels(a: Array, x: Array, y: Array) -> Array:
    """A texture of branches: three crossing waves, their crests only, different in every patient."""
    total = np.zeros_like(x)
    for index, turn in enumerate((0.4, 1.5, 2.6)):
        phase, tilt = np.pi * a[:, 9 + index], turn + 0.5 * a[:, 12 + index]
        bend = 0.15 * np.sin(5 * x + phase) + 0.1 * np.sin(7 * y - phase)
        wave = np.sin((9 + 2 * index) * (x * np.cos(tilt) + y * np.sin(tilt) + bend) + phase)
        total += np.square(np.maximum(wave, 0))
    return total


def _draw_ct(a: Array, x: Array, y: Array) -> Array:
    """A slice of the thorax: body, lungs with vessels, mediastinum, spine, a ring of ribs; air 0, water 0.5."""
    body, lungs, heart = _chest_parts(a, x, y)
    tissue = 0.53 * body
    image = tissue - 0.38 * lungs + 0.36 * heart * lungs + 0.06 * _vessels(a, x, y) * lungs
    image += 0.3 * _ellipse(x, y, (0.0, 0.5 + 0.03 * a[:, 3]), (0.13, 0.13, 0.03))
    around = np.hypot(x / (0.74 + 0.05 * a[:, 0]), y / (0.64 + 0.05 * a[:, 1]))
    ribs = np.exp(-np.square((around - 1) / 0.05)) * (np.sin(13 * np.arctan2(y, x) + 3 * a[:, 15]) > 0.2)
    return np.asarray(image + 0.25 * ribs * body, dtype=np.float32)


def _draw_mr(a: Array, x: Array, y: Array) -> Array:
    """A slice of the brain: scalp, dark skull, folded cortex, dark ventricles."""
    wide, tall = 0.68 + 0.05 * a[:, 0], 0.84 + 0.05 * a[:, 1]
    head = _ellipse(x, y, (0.0, 0.0), (wide, tall, 0.02))
    skull = _ellipse(x, y, (0.0, 0.0), (wide * 0.93, tall * 0.93, 0.02))
    brain = _ellipse(x, y, (0.0, 0.0), (wide * 0.86, tall * 0.86, 0.02))
    around, angle = np.hypot(x / wide, y / tall), np.arctan2(y, x)
    folds = np.sin(15 * angle + 3 * a[:, 2] + 4 * np.sin(3 * angle + a[:, 3])) * _step((around - 0.62) / 0.04)
    shift, half = 0.12 + 0.02 * a[:, 4], (0.07 + 0.02 * a[:, 5], 0.24 + 0.05 * a[:, 6], 0.02)
    ventricles = _ellipse(x, y, (shift, 0.05 * a[:, 7]), half) + _ellipse(x, y, (-shift, 0.05 * a[:, 7]), half)
    tissue = 0.45 + 0.06 * folds + 0.03 * (_vessels(a, x, y) - 1)
    return np.asarray(0.75 * (head - skull) + tissue * brain - 0.32 * ventricles * brain, dtype=np.float32)


def _draw_xr(a: Array, x: Array, y: Array) -> Array:
    """A projection of the chest: what attenuates is bright; ribs as sinusoids across the lungs, heart, spine."""
    body, lungs, heart = _chest_parts(a, x, y)
    bow = 0.2 * np.square(x) - 0.03 * a[:, 15]
    ribs = np.square(np.maximum(np.sin((17 + 2 * a[:, 3]) * (y + bow + 0.25 * np.abs(x)) + 3 * a[:, 9]), 0))
    spine = np.exp(-np.square(x / 0.1)) * (1 + 0.15 * np.sin(22 * y + 3 * a[:, 10]))
    water = 0.9 * body - 0.62 * lungs + 0.45 * heart + 0.5 * spine * body
    water += 0.16 * ribs * (lungs + 0.3 * body) + 0.05 * _vessels(a, x, y) * lungs
    return np.asarray(1 - np.exp(-water), dtype=np.float32)


_DRAW: dict[Modality, Callable[[Array, Array, Array], Array]] = {
    "ct": _draw_ct,
    "mr": _draw_mr,
    "xr": _draw_xr,
}
