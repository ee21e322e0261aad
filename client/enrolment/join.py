"""Joining a consortium: unpack a kit into the site's folder, with keys from the kit or made here."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import ServerAddress, SiteConfig, read_config
from fedgraft.client.enrolment.edit_yaml import change_values, filled
from fedgraft.client.enrolment.home import Joined, SiteHome
from fedgraft.client.privacy.masking.used_masks import SecureAggregationSettings
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import CONFIGS, write_atomic, write_json
from fedgraft.common.identity.enrolment import write_enrolment
from fedgraft.common.identity.keys import (
    MaskingKey,
    NodeKey,
    fingerprint,
    load_certificate,
    load_masking_key,
    load_node_key,
    new_masking_key,
    new_node_key,
    private_pem,
    public_pem,
)
from fedgraft.common.identity.kit import Kit, read_kit
from fedgraft.common.identity.roster import Membership, parse_membership, read_membership


@dataclass(frozen=True)
class Join:
    """What came of joining. `enrolment` is the file for the coordinator, if the site made its own keys."""

    joined: Joined
    public_key: bytes
    enrolment: Path | None


def join(path: Path, passphrase: str, cohort: CohortSpec, policy: SitePolicy, home: SiteHome) -> Join:
    """Make the site's folder from a kit. InputError if there is one, or if the kit is not right."""
    if home.path.exists() and any(home.path.iterdir()):
        raise InputError(f"{home.path} is in use.", fix="Choose another --home, or use `fedgraft site rejoin`.")
    kit = read_kit(path, passphrase)
    node, masking = _keys(kit, passphrase, path)
    home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_keys(home, node, masking)
    _write_authority(home, kit)
    config = SiteConfig(
        secure_aggregation=_masks(home),
        name=kit.facts.site,
        cohort=cohort,
        state=home.state,
        cache=home.cache,
        many_studies=True,
        server=ServerAddress(address=f"{_bracketed(kit.facts.host)}:{kit.facts.port}", ca=home.authority),
        policy=policy,
    )
    write_atomic(home.config, _explained(config).encode(), private=True)
    enrolment = None
    if not kit.facts.keys_enclosed:
        enrolment = home.path / f"{kit.facts.site}.enrolment.json"
        write_enrolment(enrolment, kit.facts.consortium, kit.facts.site, node, masking)
    joined = Joined(consortium=kit.facts.consortium, site=kit.facts.site, host=kit.facts.host, port=kit.facts.port)
    home.write_joined(joined)
    return Join(joined, public_pem(node), enrolment)


def _explained(config: SiteConfig) -> str:
    """The site's file for the people who keep it: every key, and what it means."""
    shipped = (CONFIGS / "sites" / "hospital.yaml").read_text(encoding="utf-8")
    keys = shipped[shipped.index("name:") :]
    head = (
        "# This hospital's own configuration. It never leaves the hospital and holds no secret. Change what you like,\n"
        "# and see with `fedgraft site check STUDY` whether all is well. Relative paths count from this folder.\n"
    )
    return head + filled(keys, config.model_dump(mode="json"))


def rejoin(path: Path, passphrase: str, home: SiteHome) -> Joined:
    """Take over a renewed kit, with new keys or another server; data, state and approvals stay as they are."""
    before = home.joined()
    kit = read_kit(path, passphrase)
    if (kit.facts.consortium, kit.facts.site) != (before.consortium, before.site):
        raise InputError(f"{path}: is for another site or consortium than {home.path}.")
    old = home.roster()
    new = parse_membership(_json(kit.files.get("roster.json", b"{}")), f"{path}: roster.json")
    _check_identities(old, new, (before.site,), path)
    if kit.facts.keys_enclosed:
        _write_keys(home, *_keys(kit, passphrase, path))
    _write_authority(home, kit)
    _take_over(home, ServerAddress(address=f"{_bracketed(kit.facts.host)}:{kit.facts.port}", ca=home.authority))
    joined = before.model_copy(update={"host": kit.facts.host, "port": kit.facts.port})
    home.write_joined(joined)
    return joined


def update_roster(path: Path, home: SiteHome, accept: Collection[str] = ()) -> int:
    """Take over a newer roster; its serial number. InputError if it is older, or not signed by the authority.

    A member that comes with another identity than before is believed only if it is in `accept`: whoever holds the
    authority could otherwise put an identity of their own in its place, and read what is masked for that member.
    """
    new, old = read_membership(path, load_certificate(home.authority)), home.roster()
    if new.consortium != old.consortium or new.serial < old.serial:
        raise InputError(f"{path}: is older than the roster that is here.", fix="Ask the coordinator for the newest.")
    _check_identities(old, new, accept, path)
    new.write(home.roster_file)
    _take_over(home)
    return new.serial


def _check_identities(old: Membership, new: Membership, accept: Collection[str], source: Path) -> None:
    before, after = old.identities(), new.identities()
    changed = [name for name in before.keys() & after.keys() if before[name] != after[name] and name not in accept]
    if changed:
        shown = "; ".join(f"{name}: {fingerprint(after[name].encode())}" for name in sorted(changed))
        raise InputError(
            f"{source}: other identities than before. {shown}.",
            fix="Compare these with the sites by telephone; if they are right, repeat with --accept NAME.",
        )


def _masks(home: SiteHome) -> SecureAggregationSettings:
    """What the site needs for masked studies, from the roster that the kit brought; the members are pinned by it."""
    members = home.roster()
    write_json(home.secure_aggregation_file, members.mask_roster().model_dump(mode="json"))
    return SecureAggregationSettings(
        key=home.masking_file, roster=home.secure_aggregation_file, identities=members.identities()
    )


def _take_over(home: SiteHome, server: ServerAddress | None = None) -> None:
    """Pin the members of a newer roster, and leave all else of the site's file as a person wrote it."""
    config, fresh = read_config(home.config), _masks(home)
    if config.secure_aggregation is not None:
        fresh = config.secure_aggregation.model_copy(update={"identities": fresh.identities})
    changes = {"secure_aggregation": fresh.model_dump(mode="json")}
    if server is not None and (config.server is None or config.server.address != server.address):
        changes["server"] = server.model_dump(mode="json")
    change_values(home.config, changes)


def _keys(kit: Kit, passphrase: str, source: Path) -> tuple[NodeKey, MaskingKey]:
    if not kit.facts.keys_enclosed:
        return new_node_key(), new_masking_key()
    try:
        node, masking = kit.files["node.key"], kit.files["masking.key"]
    except KeyError as missing:
        raise InputError(f"{source}: {missing.args[0]} is missing.") from None
    return load_node_key(node, "node.key", passphrase), load_masking_key(masking, "masking.key", passphrase)


def _write_keys(home: SiteHome, node: NodeKey, masking: MaskingKey) -> None:
    # Unlocked, since a site starts without anybody there to type; the folder is its owner's alone.
    write_atomic(home.node_file, private_pem(node), private=True)
    write_atomic(home.masking_file, private_pem(masking), private=True)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _write_authority(home: SiteHome, kit: Kit) -> None:
    for name in ("ca.crt", "roster.json"):
        if name not in kit.files:
            raise InputError(f"The kit has no {name}.")
        write_atomic(home.path / name, kit.files[name])
    home.roster()
