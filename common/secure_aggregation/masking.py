"""Masked sums: what several sites send adds up to the sum of their arrays, and says nothing by itself.

Every two sites share a secret. From it and the context both draw the same noise; one adds it, the other subtracts it,
so that all noise is gone in the sum over all sites, and only there (Bonawitz et al. 2017, "Practical secure
aggregation", without recovery from drop-out: a site that is missing leaves its noise in the sum, and nothing opens).

Values are fixed-point numbers in Z_2^64, where the sum of a number and uniform noise is uniform: what one site sends
is as good as random to whoever lacks one of its pairs' secrets. Additions wrap, so the masks cancel exactly.

The noise of a pair is ChaCha20 under HKDF-SHA256(X25519 secret; context, both names and keys). The context says what
is summed: study, part, stage, round, exchange, number of the sum, the sites with the nonces that they drew for this
run, names and shapes, and the digest of the model that came. Sites that do not agree on all of it draw different noise:
a coordinator that shows sites different models, or names them different partners, gets noise, not a sum.

How garbage is told from a sum: every upload starts with a tag, the words (1, 0, 0, 0), masked like all that follows
by the same streams. If all pairs agree the tags add up to (n, 0, 0, 0). If any two disagree, or one site is missing or
counted twice, the streams that are left over make the tag uniform, and it opens by chance once in 2^256. The tag shows
that the masks are gone, not that what a site put in is sensible: a sum cannot show that, whoever computes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedgraft.common.base.files import canonical_json
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.secure_aggregation.mask_keys import Pairs

Words = NDArray[np.uint64]

FEWEST = 3
"""With two sites each would learn the other's arrays: the sum minus its own."""
SCALE_BITS = 24
"""A value is a multiple of 2^-24; rounding costs at most half of that, once a site."""
FINE_BITS = 50
"""Sums that come as float64 have a second word with 50 more bits: they may be small beside 2^-24, and matter."""
_SUM_BITS = 62
_TAG = np.array([1, 0, 0, 0], dtype="<u8")
_CHUNK = 1 << 15
_MOST_WORDS = 1 << 35
"""ChaCha20 counts blocks of 64 bytes in 32 bits."""


class TooFewSites(ValueError):
    """A sum over so few sites gives away what one of them put in."""


class OutOfRange(ValueError):
    """A value is not finite, or so large that the sum might wrap."""


class NotOpened(ValueError):
    """The masks did not cancel: a site is missing, or they were not all drawn from one context and the same keys."""


class LayoutEntry(NamedTuple):
    """One array of a layout: its name and shape, and whether it takes a second word for each value."""

    name: str
    shape: tuple[int, ...]
    fine: bool

    @property
    def words(self) -> int:
        """Words of 64 bits that the array takes: one for each value, or two where it is `fine`."""
        return math.prod(self.shape) * (1 + self.fine)


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a masked sum lie in its words: after the tag, in the order of their names."""

    entries: tuple[LayoutEntry, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Layout:
        """The layout for arrays of these shapes and types, by name; float64 is fine."""
        return cls(tuple(LayoutEntry(name, shape, kind == "float64") for name, (shape, kind) in sorted(shapes.items())))

    @cached_property
    def words(self) -> int:
        """Words of 64 bits in one upload, the tag among them."""
        return len(_TAG) + sum(entry.words for entry in self.entries)

    def places(self) -> Iterator[tuple[LayoutEntry, slice]]:
        """Each array with the slice of the upload's words that holds it, in the order of names."""
        at = len(_TAG)
        for entry in self.entries:
            yield entry, slice(at, at + entry.words)
            at += entry.words


@dataclass(frozen=True)
class Context:
    """What is summed, and with whom. Sites must agree on every field, or nothing opens.

    `sites` are all that take part, each with the nonce that it drew for this run; `number` counts the sums of a run, so
    that a round that is repeated draws new masks; `work` and `evaluate` are what the instruction asks for, and
    `received` is the digest of all that came with it: the model, and what is beside it.
    """

    study: str
    part: str
    stage: int
    round: int
    exchange: int
    work: bool
    evaluate: str | None
    number: int
    sites: Mapping[str, str]
    received: str

    def digest(self, layout: Layout, pairs: Pairs) -> bytes:
        """SHA-256 over all of it, the layout, and the mask keys of all that take part. TooFewSites below three."""
        if len(self.sites) < FEWEST:
            raise TooFewSites(f"masked sums need {FEWEST} sites: of {len(self.sites)}, one would learn another's part")
        keys = {site: pairs.roster.key(site).hex() for site in self.sites}
        facts = [self.study, self.part, self.stage, self.round, self.exchange]
        facts += [self.work, self.evaluate, self.number, self.received]
        return hashlib.sha256(
            canonical_json(["fedgraft masked sum 2", facts, dict(self.sites), keys, layout.entries])
        ).digest()


def most(sites: int) -> float:
    """The largest value that may go into a sum over so many sites."""
    return 2.0 ** (_SUM_BITS - SCALE_BITS) / sites


def brought_in(arrays: Arrays, sites: int) -> dict[str, NDArray[Any]]:
    """The arrays with what is too large for a sum over so many sites brought to the largest, and 0 for no number."""
    limit = most(sites) * (1 - 1e-6)  # with room for rounding
    return {
        name: np.clip(np.nan_to_num(array, nan=0.0, posinf=limit, neginf=-limit), -limit, limit)
        if array.dtype.kind == "f"
        else array
        for name, array in arrays.items()
    }


def encode(arrays: Arrays, factors: Mapping[str, float], layout: Layout, sites: int) -> Words:
    """`factor * array` as words behind the tag; a factor that is not given is 1.

    ValueError if the arrays are not those of the layout; OutOfRange for a value that is not finite, or above `most`.
    """
    if sites < FEWEST:
        raise TooFewSites(f"masked sums need {FEWEST} sites")
    if set(arrays) != {entry.name for entry in layout.entries}:
        raise ValueError("not the arrays of this layout")
    words = np.empty(layout.words, "<u8")
    words[: len(_TAG)] = _TAG
    for entry, place in layout.places():
        array = np.asarray(arrays[entry.name])
        if array.shape != entry.shape:
            raise ValueError(f"{entry.name} has another shape than in this layout")
        _fix(array.reshape(-1), factors.get(entry.name, 1.0), words[place].view("<i8"), sites)
    return words


def _fix(flat: NDArray[Any], factor: float, out: NDArray[np.int64], sites: int) -> None:
    """Fixed-point numbers for `factor * flat`; `out` is as long as `flat`, or twice, and then takes the finer bits."""
    scale, bound, count = factor * 2.0**SCALE_BITS, most(sites) * 2.0**SCALE_BITS, len(flat)
    for start in range(0, count, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            part *= scale
        # Written as "not within", because what is no number must not pass.
        if not max(part.max(), -part.min()) <= bound:
            raise OutOfRange("a value is not finite, or too large for a sum over so many sites")
        whole = np.rint(part)
        out[start : start + len(part)] = whole
        if len(out) > count:
            part -= whole
            part *= 2.0**FINE_BITS
            out[count + start : count + start + len(part)] = np.rint(part)


def mask(words: Words, context: bytes, sites: Mapping[str, str], pairs: Pairs) -> None:
    """Hide `words`, in place, under the noise of this site's pairs with all other `sites`.

    `context` is the digest of this sum's context, and must never be used with other words. RosterError if a site is not
    on the roster; ValueError if this site is not among `sites`.
    """
    if len(sites) < FEWEST:
        raise TooFewSites(f"masked sums need {FEWEST} sites")
    if pairs.site not in sites:
        raise ValueError("this site is not among those that take part")
    if len(words) > _MOST_WORDS:
        raise OutOfRange("too many words for one key")
    streams = [(pairs.site < other, _stream(context, other, pairs)) for other in sorted(sites) if other != pairs.site]
    nothing = memoryview(bytes(8 * _CHUNK))
    noise = np.empty(_CHUNK, "<u8")
    into = noise.data.cast("B")
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK]
        for adds, stream in streams:
            stream.update_into(nothing[: part.nbytes], into)
            if adds:
                part += noise[: len(part)]
            else:
                part -= noise[: len(part)]


def _stream(context: bytes, other: str, pairs: Pairs) -> CipherContext:
    """The noise of a pair: the same for both, whoever asks."""
    both = [[site, pairs.roster.key(site).hex()] for site in sorted((pairs.site, other))]
    info = canonical_json(["fedgraft mask 1", both])
    key = HKDF(SHA256(), length=32, salt=context, info=info).derive(pairs.secret(other))
    # The key is used for this one stream, so the nonce may be the same for all.
    return Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()


class MaskedSum:
    """Adds up what the sites sent; opens once all of them are in it."""

    def __init__(self, layout: Layout, sites: int) -> None:
        self._layout = layout
        self._sites = sites
        self._total = np.zeros(layout.words, "<u8")

    def add(self, words: Words) -> None:
        """Take in one site's upload. ValueError if it has another length or type."""
        if words.shape != self._total.shape or words.dtype != self._total.dtype:
            raise ValueError("not an upload of this layout")
        self._total += words

    def open(self) -> dict[str, NDArray[np.float64]]:
        """The sums by name. NotOpened if the masks have not cancelled; nothing comes out then."""
        if (self._total[: len(_TAG)] != _TAG * np.uint64(self._sites)).any():
            raise NotOpened("the masks have not cancelled")
        sums = {}
        for entry, place in self._layout.places():
            found = self._total[place].view("<i8").reshape(1 + entry.fine, *entry.shape)
            values = found[0].astype(np.float64)
            if entry.fine:
                values += found[1] * 2.0**-FINE_BITS
            values *= 2.0**-SCALE_BITS
            sums[entry.name] = values
        return sums
