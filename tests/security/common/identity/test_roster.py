"""A mask key counts only if the identity that was pinned at onboarding has signed it for that very site."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationError

from fedgraft.common.base.errors import RosterError
from fedgraft.common.secure_aggregation.mask_keys import (
    MaskKeyEntry,
    Pairs,
    Roster,
    sign_entry,
    verified,
)
from fedgraft.common.secure_aggregation.masking import NotOpened
from helpers.masks import Consortium, opened, pem


@pytest.fixture
def three() -> Consortium:
    return Consortium(3)


def test_a_roster_of_signed_keys_is_taken(three: Consortium) -> None:
    assert verified(three.entries(), three.pins).keys == {
        name: key.public_key().public_bytes_raw() for name, key in three.private.items()
    }


def test_both_sites_of_a_pair_find_the_same_secret_and_nobody_else(three: Consortium) -> None:
    east, north, south = (three.pairs[name] for name in three.names)
    assert east.secret("north") == north.secret("east")
    assert len({east.secret("north"), east.secret("south"), north.secret("south")}) == 3
    assert south.secret("east") == east.secret("south")


@pytest.mark.parametrize("at", [0, 1])
def test_a_changed_key_or_signature_is_refused(three: Consortium, at: int) -> None:
    """Entry 0 is signed with Ed25519, entry 1 with ECDSA."""
    entries = three.entries()
    good = entries[at]
    stranger = X25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    flipped = f"{int(good.signature[-2:], 16) ^ 1:02x}"
    for bad in (
        good.model_copy(update={"key": stranger}),
        good.model_copy(update={"signature": good.signature[:-2] + flipped}),
        good.model_copy(update={"signature": "00"}),
    ):
        with pytest.raises(RosterError, match=f"'{good.site}' was not signed"):
            verified([bad if entry is good else entry for entry in entries], three.pins)


def test_an_entry_does_not_serve_under_another_name(three: Consortium) -> None:
    """Replaying north's signed entry as south's, even with north's pin in place of south's."""
    entries = three.entries()
    as_south = entries[1].model_copy(update={"site": "south"})
    with pytest.raises(RosterError, match="'south' was not signed"):
        verified([*entries[:2], as_south], three.pins)
    with pytest.raises(RosterError, match="'south' was not signed"):
        verified([*entries[:2], as_south], three.pins | {"south": three.pins["north"]})


def test_a_coordinators_own_keys_are_refused(three: Consortium) -> None:
    """The man in the middle: the coordinator signs keys of its own with an identity of its own."""
    identity = Ed25519PrivateKey.generate()
    forged = [sign_entry(name, X25519PrivateKey.generate().public_key(), identity) for name in three.names]
    with pytest.raises(RosterError, match="was not signed"):
        verified(forged, three.pins)


def test_a_site_that_nobody_pinned_is_refused(three: Consortium) -> None:
    identity = Ed25519PrivateKey.generate()
    sybil = sign_entry("sybil", X25519PrivateKey.generate().public_key(), identity)
    with pytest.raises(RosterError, match="'sybil', whose identity was never pinned"):
        verified([*three.entries(), sybil], three.pins)


def test_one_site_under_two_names_is_refused(three: Consortium) -> None:
    entries = three.entries()
    with pytest.raises(RosterError, match="two entries for 'east'"):
        verified([*entries, entries[0]], three.pins)
    same_key = sign_entry("twin", three.private["east"].public_key(), identity := Ed25519PrivateKey.generate())
    with pytest.raises(RosterError, match="'east' and 'twin' have one key"):
        verified([*entries, same_key], three.pins | {"twin": pem(identity)})
    other = X25519PrivateKey.generate().public_key()
    same_identity = sign_entry("twin", other, three.identities["east"])
    with pytest.raises(RosterError, match="'east' and 'twin' have one key"):
        verified([*entries, same_identity], three.pins | {"twin": three.pins["east"]})


def test_a_pin_that_is_no_identity_is_refused(three: Consortium) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    for text in ("", "no key", key.public_bytes(serialization.Encoding.PEM, form).decode()):
        with pytest.raises(RosterError, match="identity of 'east' is no public key"):
            verified(three.entries(), three.pins | {"east": text})


def test_entries_that_are_not_hex_are_refused() -> None:
    for key, signature in (("zz" * 32, "00"), ("00" * 31, "00"), ("00" * 32, ""), ("00" * 32, "0")):
        with pytest.raises(ValidationError):
            MaskKeyEntry(site="east", key=key, signature=signature)


def test_a_site_whose_key_is_not_on_the_roster_does_not_mask(three: Consortium) -> None:
    with pytest.raises(RosterError, match="another mask key for 'east'"):
        Pairs("east", X25519PrivateKey.generate(), three.roster)
    with pytest.raises(RosterError, match="another mask key for 'nobody'"):
        Pairs("nobody", three.private["east"], three.roster)
    with pytest.raises(RosterError, match="no site called 'nobody'"):
        three.pairs["east"].secret("nobody")


def test_a_key_whose_secret_everybody_knows_is_refused(three: Consortium) -> None:
    weak = Roster({**three.roster.keys, "north": bytes(32)})
    with pytest.raises(RosterError, match="mask key of 'north' is none"):
        Pairs("east", three.private["east"], weak).secret("north")


def test_sites_that_pinned_different_keys_open_to_nothing(three: Consortium) -> None:
    """West has renewed its key, and one site still has the old roster."""
    import numpy as np

    arrays = {"a": np.ones(5, np.float32)}
    uploads = [three.upload(name, arrays) for name in three.names[:2]]
    renewed = X25519PrivateKey.generate()
    keys = {**three.roster.keys, "south": renewed.public_key().public_bytes_raw()}
    three.pairs["south"] = Pairs("south", renewed, Roster(keys))
    with pytest.raises(NotOpened):
        opened([*uploads, three.upload("south", arrays)], arrays)
