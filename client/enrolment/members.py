"""Whom a site masks with: the members whose identity a person at the site has pinned, and nobody else.

The authority's signature makes somebody a member. It pins nobody, since the coordinator holds the authority: with a few
made-up members it could fill the group of a sum, take away what it knows, and read the one site that is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.edit_yaml import change_values
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.privacy.masking.used_masks import SecureAggregationSettings
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import write_json
from fedgraft.common.identity.enrolment import SiteKeys
from fedgraft.common.identity.keys import is_fingerprint_of
from fedgraft.common.identity.roster import Member, Membership, mask_roster, read_membership


@dataclass(frozen=True)
class Members:
    """The roster's serial number, the members that the site masks with, and those that nobody pinned."""

    serial: int
    pinned: tuple[str, ...]
    unpinned: tuple[str, ...]


def update_roster(home: SiteHome, path: Path | None = None, accept: Mapping[str, str] | None = None) -> Members:
    """Take over a newer roster, if one is given, and pin members: `accept` has fingerprints that people typed, by name.

    InputError, and nothing changed, if the roster is older, is not signed by the authority, gives a pinned member or
    the site itself another identity, or if a typed fingerprint is not that of the member.
    """
    old, own, accept = home.roster(), home.joined().site, accept or {}
    new, source = (old, home.roster_file) if path is None else (read_membership(path, _authority(home)), path)
    if new.consortium != old.consortium or new.serial < old.serial:
        raise InputError(f"{source}: is older than the roster that is here.", fix="Ask the coordinator for the newest.")
    _check_own(new, own, home, source)
    _check_typed(new, accept, source)
    pins = pins_of(home)
    changed = sorted(
        n for n, m in new.members.items() if n in pins.keys() - accept.keys() - {own} and m.node != pins[n]
    )
    if changed:
        raise InputError(
            f"{source}: other identities than before for {', '.join(changed)}.",
            fix="Ask these sites by telephone for their fingerprints; repeat with --accept NAME=FINGERPRINT for each.",
        )
    found = pin(home, own, new, pins | {name: new.members[name].node for name in accept})
    new.write(home.roster_file)
    return found


def pin(home: SiteHome, own: str, members: Membership, pins: Mapping[str, str]) -> Members:
    """Mask from now on with those members whose identity is that of `pins`; leave all else of the site's file."""
    known = _known(home, own, members, pins)
    fresh, before = settings(home, known), read_config(home.config).secure_aggregation
    if before is not None:
        fresh = before.model_copy(update={"identities": fresh.identities})
    change_values(home.config, {"secure_aggregation": fresh.model_dump(mode="json")})
    write_mask_keys(home, known)
    return Members(members.serial, tuple(sorted(known)), tuple(sorted(members.members.keys() - known.keys())))


def settings(home: SiteHome, known: Mapping[str, Member]) -> SecureAggregationSettings:
    """What the site's file says of secure aggregation with these members, the site's own entry among them."""
    identities = {name: member.node for name, member in sorted(known.items())}
    return SecureAggregationSettings(key=home.masking_file, roster=home.secure_aggregation_file, identities=identities)


def write_mask_keys(home: SiteHome, known: Mapping[str, Member]) -> None:
    """Write the file of signed mask keys. With an identity that is not pinned in it, the site masks nothing."""
    write_json(home.secure_aggregation_file, mask_roster(known).model_dump(mode="json"))


def pins_of(home: SiteHome) -> dict[str, str]:
    """The identities that people at the site have pinned, as public keys in PEM by name."""
    before = read_config(home.config).secure_aggregation
    return dict(before.identities) if before is not None else {}


def _known(home: SiteHome, own: str, members: Membership, pins: Mapping[str, str]) -> dict[str, Member]:
    # What the roster says of the site itself is not asked: its keys are here.
    known = {name: member for name, member in members.members.items() if pins.get(name) == member.node}
    return {**known, own: SiteKeys(home.node_key(), home.masking_key()).member(own)}


def _check_own(members: Membership, own: str, home: SiteHome, source: Path) -> None:
    there, here = members.members.get(own), SiteKeys(home.node_key(), home.masking_key()).member(own)
    if there is not None and (there.node, there.masking) != (here.node, here.masking):
        raise InputError(
            f"{source}: has other keys for {own} than this site has.",
            fix=f"Has the coordinator enrolled the newest {own}.enrolment.json? If so, another goes by your name.",
        )


def _check_typed(members: Membership, accept: Mapping[str, str], source: Path) -> None:
    for name, typed in accept.items():
        if name not in members.members:
            raise InputError(
                f"{source}: there is no {name}.", fix=f"There are: {', '.join(members.members) or 'none'}."
            )
        if not is_fingerprint_of(typed, members.members[name].node):
            # What it should be is not said: it must come from the site's people, and not from here.
            raise InputError(
                f"{source}: the fingerprint typed for {name} is not that of its key here.",
                fix=f"Ask {name} again, by telephone. If it says the same, somebody put another key in its place.",
            )


def _authority(home: SiteHome) -> x509.Certificate:
    return x509.load_pem_x509_certificate(home.authority.read_bytes())
