"""Rosters of sites with fresh keys, and masked sums over them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgraft.common.secure_aggregation.mask_keys import (
    Identity,
    MaskKeyEntry,
    Pairs,
    sign_entry,
    verified,
)
from fedgraft.common.secure_aggregation.masking import (
    Context,
    Layout,
    MaskedSum,
    Words,
    encode,
    mask,
)

NAMES = ("east", "north", "south", "west", "centre", "coast", "hill", "isle", "lake", "moor")


class Consortium:
    """Sites with keys of their own, and a roster that each of them has checked."""

    def __init__(self, count: int = 5) -> None:
        self.names = NAMES[:count] if count <= len(NAMES) else tuple(f"site{n:02d}" for n in range(count))
        self.private = {name: X25519PrivateKey.generate() for name in self.names}
        # Every other site has an identity of the other kind.
        self.identities: dict[str, Identity] = {
            name: ec.generate_private_key(ec.SECP384R1()) if at % 2 else Ed25519PrivateKey.generate()
            for at, name in enumerate(self.names)
        }
        self.pins = {name: pem(identity) for name, identity in self.identities.items()}
        self.roster = verified(self.entries(), self.pins)
        self.pairs = {name: Pairs(name, self.private[name], self.roster) for name in self.names}

    def entries(self) -> list[MaskKeyEntry]:
        return [sign_entry(name, self.private[name].public_key(), self.identities[name]) for name in self.names]

    def context(self, **changes: Any) -> Context:
        sites = {name: f"nonce of {name}" for name in self.names}
        return replace(Context("study", "tensors", 0, 1, 1, True, None, 1, sites, "model"), **changes)

    def upload(
        self, site: str, arrays: dict[str, np.ndarray], context: Context | None = None, **factors: float
    ) -> Words:
        context = context or self.context()
        layout = layout_of(arrays)
        words = encode(arrays, factors, layout, len(context.sites))
        mask(words, context.digest(layout, self.pairs[site]), context.sites, self.pairs[site])
        return words


def pem(identity: Identity) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return identity.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def layout_of(arrays: dict[str, np.ndarray]) -> Layout:
    return Layout.of({name: (array.shape, array.dtype.name) for name, array in arrays.items()})


def opened(uploads: list[Words], arrays: dict[str, np.ndarray], sites: int | None = None) -> dict[str, np.ndarray]:
    total = MaskedSum(layout_of(arrays), len(uploads) if sites is None else sites)
    for words in uploads:
        total.add(words)
    return total.open()
