"""Keys of simulated hospitals: what a consortium's kit brings to each site of a study with secure aggregation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fedgraft.client.privacy.masking.used_masks import SecureAggregationSettings
from fedgraft.common.base.files import write_atomic, write_json
from fedgraft.common.secure_aggregation.mask_keys import SignedRoster, sign_entry


def make_keys(sites: Path, names: Sequence[str]) -> dict[str, SecureAggregationSettings]:
    """A fresh mask key in each site's folder, `roster.json` with all of them signed, and each site's settings.

    What a run gives does not depend on them, since masks cancel.
    """
    roster = (sites / "roster.json").resolve()
    private = {name: X25519PrivateKey.generate() for name in names}
    signers = {name: Ed25519PrivateKey.generate() for name in names}
    pins = {
        name: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        for name, key in signers.items()
    }
    settings = {}
    for name, key in private.items():
        path = (sites / name / "mask_key.pem").resolve()
        write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), private=True)
        settings[name] = SecureAggregationSettings(key=path, roster=roster, identities=pins, regroup="always")
    entries = tuple(sign_entry(name, key.public_key(), signers[name]) for name, key in private.items())
    write_json(roster, SignedRoster(entries=entries).model_dump(mode="json"))
    return settings
