"""A site's acquisition: from the phantom as it is to the integers its scanner writes.

Two parts: `acquire` changes what an image looks like (blur, characteristic curve, noise, vendor look), `store` only
how it is written (bits, sign, rescale, polarity, window). A reader that honours the tags gets the first back and never
sees the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from fedgraft.common.base.value import Value
from fedgraft.simulations.phantoms.phantoms import Array, Modality

Syntax = Literal["explicit_little", "implicit_little", "explicit_big", "deflated", "rle", "jpeg2000"]
"""The transfer syntaxes that can be written here; jpeg2000 is the lossless one."""
Tag = Literal["PixelSpacing", "BodyPartExamined", "PatientAge", "PatientSex", "StudyDate", "Manufacturer"]
"""The tags that a scanner may leave out."""
Unit = Annotated[float, Field(ge=0, le=1)]

_HOUNSFIELD = (-1000.0, 1000.0)
_LETTER = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=bool)


class Scanner(Value):
    """One acquisition style. Grey values run from 0 to 1 until they are stored."""

    # What the image looks like.
    matrix: Annotated[int, Field(ge=32, le=512)] = 64
    """Pixels along each side; with `spacing_mm` it gives the field of view, which the anatomy fills."""
    spacing_mm: Annotated[float, Field(gt=0)] = 4.0
    """Distance of the centres of two pixels."""
    blur_mm: Annotated[float, Field(ge=0)] = 0.0
    """Deviation of the focal spot's blur."""
    gamma: Annotated[float, Field(gt=0)] = 1.0
    """Exponent on the grey values."""
    gain: float = 1.0
    """Factor on the values after `gamma`; -1 with `offset` 1 inverts the image and no tag says so."""
    offset: float = 0.0
    """What is added after `gain`."""
    bias: Unit = 0.0
    """Amplitude of a smooth multiplicative field that differs from image to image."""
    collimation: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Width of the black border, as a share of the image's width."""
    noise: Unit = 0.1
    """Deviation of the noise; Rician for mr, Gaussian for the others."""
    look: Literal["none", "unsharp", "sigmoid"] = "none"
    """The vendor's post-processing."""
    marker: Literal["none", "all", "findings"] = "none"
    """A letter burnt into a corner of all images, or of those with a finding alone: a shortcut to learn by mistake."""

    # How it is written.
    polarity: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2"
    """Whether large values are white, MONOCHROME2, or black."""
    bits_stored: Annotated[int, Field(ge=8, le=16)] = 12
    """Bits of a pixel."""
    signed: bool = False
    """Whether pixels may be below 0."""
    slope: Annotated[float, Field(gt=0)] | None = None
    """RescaleSlope; with `intercept` null too, ct has 1 and -1024, and the others have no rescale tags."""
    intercept: float | None = None
    """RescaleIntercept."""
    values: tuple[float, float] | None = None
    """Rescaled values of grey 0 and 1, also the window; null: -1000 to 1000 HU for ct, the others the whole range."""
    window: Literal["none", "one", "several", "voi_lut_sequence"] = "one"
    """`several` adds a narrower second window; the LUT is a square root, and the stored pixels are squares."""
    syntax: Syntax = "explicit_little"
    """How the file is encoded."""
    missing_tags: tuple[Tag, ...] = ()
    """Tags that the file lacks."""

    @model_validator(mode="after")
    def _sound(self) -> Scanner:
        if not self.gain:
            raise ValueError("gain must not be 0: nothing would be left of the image")
        if self.values is not None and self.values[0] >= self.values[1]:
            raise ValueError("values must rise")
        if self.window == "voi_lut_sequence" and (self.signed or self.rescales or self.bits_stored > 12):
            raise ValueError("window: a voi_lut_sequence needs unsigned pixels of at most 12 bits without rescale")
        return self

    @property
    def rescales(self) -> bool:
        """Whether rescale tags were asked for."""
        return self.slope is not None or self.intercept is not None

    @property
    def field_mm(self) -> float:
        """Width of the square image, in mm."""
        return self.matrix * self.spacing_mm

    def rescale(self, modality: Modality) -> tuple[float, float] | None:
        """RescaleSlope and RescaleIntercept, or None for a file without them."""
        if modality != "ct" and not self.rescales:
            return None
        return self.slope or 1.0, (-1024.0 if modality == "ct" else 0.0) if self.intercept is None else self.intercept

    def range(self, modality: Modality) -> tuple[float, float]:
        """Rescaled values of grey 0 and grey 1."""
        if self.values is not None:
            return self.values
        if modality == "ct":
            return _HOUNSFIELD
        slope, intercept = self.rescale(modality) or (1.0, 0.0)
        low, high = self.stored_range
        return low * slope + intercept, high * slope + intercept

    @property
    def stored_range(self) -> tuple[int, int]:
        """Smallest and largest integer that the pixels can hold."""
        if self.signed:
            return -(2 ** (self.bits_stored - 1)), 2 ** (self.bits_stored - 1) - 1
        return 0, 2**self.bits_stored - 1

    def fault(self, modality: Modality) -> str | None:
        """Why this scanner cannot write images of `modality`, or None."""
        slope, intercept = self.rescale(modality) or (1.0, 0.0)
        low, high = ((value - intercept) / slope for value in self.range(modality))
        if low < self.stored_range[0] or high > self.stored_range[1]:
            needed = f"scanner: {modality} values {self.range(modality)} need pixels from {low:g} to {high:g}"
            bits = f"{self.bits_stored} {'signed' if self.signed else 'unsigned'} bits"
            return f"{needed}, but {bits} hold {self.stored_range}; change values, slope or bits_stored"
        return None


def acquire(images: Array, scanner: Scanner, modality: Modality, seeds: Sequence[int]) -> Array:
    """What the scanner makes of phantoms (N, n, n): grey values in [0, 1]. Each image has its own seed."""
    grey = np.clip(images, 0, 1)
    if scanner.blur_mm:
        noise_multiplier = scanner.blur_mm / scanner.spacing_mm
        grey = gaussian_filter(grey, (0, noise_multiplier, noise_multiplier))
    grey = np.power(grey, scanner.gamma) * scanner.gain + scanner.offset
    for index, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        if scanner.bias:
            grey[index] *= _bias(grey.shape[-1], scanner.bias, rng)
        _collimate(grey[index], scanner.collimation)
        if scanner.noise:
            _add_noise(grey[index], scanner.noise, modality, rng)
    return np.asarray(np.clip(_look(grey, scanner), 0, 1), dtype=np.float32)


def mark(images: Array, findings: NDArray[np.bool_], scanner: Scanner) -> None:
    """Burn the letter into the corner of the images (N, n, n) that get one, in place."""
    if scanner.marker == "none":
        return
    letter = np.kron(_LETTER, np.ones((max(images.shape[-1] // 32, 1),) * 2, dtype=bool))
    chosen = findings if scanner.marker == "findings" else np.ones(len(images), dtype=bool)
    corner = images[:, 2 : 2 + letter.shape[0], 2 : 2 + letter.shape[1]]
    corner[chosen[:, None, None] & letter] = 1.0


def store(images: Array, scanner: Scanner, modality: Modality) -> NDArray[Any]:
    """Pixels of grey values in [0, 1]: integers whose rescale, window and polarity lead back to them."""
    shown = 1 - images if scanner.polarity == "MONOCHROME1" else images
    if scanner.window == "voi_lut_sequence":
        shown = np.square(shown)
    low, high = scanner.range(modality)
    slope, intercept = scanner.rescale(modality) or (1.0, 0.0)
    pixels = np.rint((low + shown.astype(np.float64) * (high - low) - intercept) / slope)
    kind = "i" if scanner.signed else "u"
    return np.clip(pixels, *scanner.stored_range).astype(f"{kind}{1 if scanner.bits_stored == 8 else 2}")


def windows(scanner: Scanner, modality: Modality) -> list[tuple[float, float]]:
    """Centres and widths of the windows; the first shows grey 0 to 1 exactly (DICOM PS3.3 C.11.2.1.2.1)."""
    if scanner.window not in ("one", "several"):
        return []
    low, high = scanner.range(modality)
    centre, width = (low + high) / 2 + 0.5, high - low + 1
    return [(centre, width)] if scanner.window == "one" else [(centre, width), (centre - width / 8, width / 2)]


def voi_lut(scanner: Scanner, modality: Modality) -> NDArray[np.uint16] | None:
    """Entries of the VOI LUT from pixel 0 on, 16 bits each: the square root that undoes what `store` squares."""
    if scanner.window != "voi_lut_sequence":
        return None
    low, high = scanner.range(modality)
    share = np.clip((np.arange(2**scanner.bits_stored) - low) / (high - low), 0, 1)
    return np.asarray(np.rint(np.sqrt(share) * 65535), dtype=np.uint16)


def _bias(pixels: int, amplitude: float, rng: np.random.Generator) -> Array:
    axis = np.linspace(-1, 1, pixels, dtype=np.float32)
    across, down, both = rng.uniform(-1, 1, 3)
    field = across * axis[None, :] + down * axis[:, None] + both * axis[None, :] * axis[:, None]
    return np.asarray(1 + amplitude * field, dtype=np.float32)


def _add_noise(image: Array, noise_multiplier: float, modality: Modality, rng: np.random.Generator) -> None:
    image += noise_multiplier * rng.standard_normal(image.shape, dtype=np.float32)
    if modality == "mr":  # the magnitude of two noisy channels
        np.hypot(image, noise_multiplier * rng.standard_normal(image.shape, dtype=np.float32), out=image)


def _collimate(image: Array, share: float) -> None:
    border = round(share * len(image))
    if border:
        image[:border] = image[-border:] = 0
        image[:, :border] = image[:, -border:] = 0


def _look(grey: Array, scanner: Scanner) -> Array:
    if scanner.look == "unsharp":
        return np.asarray(grey + 0.8 * (grey - gaussian_filter(grey, (0, 1.5, 1.5))))
    if scanner.look == "sigmoid":
        steep = 6.0
        ends = expit(-steep / 2), expit(steep / 2)
        return np.asarray((expit(steep * (grey - 0.5)) - ends[0]) / (ends[1] - ends[0]))
    return grey
