"""Joining a consortium: unpack a kit into the site's folder, make the site's keys, and write what enrols them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import ServerAddress, SiteConfig, read_config
from fedgraft.client.enrolment.edit_yaml import change_values, filled
from fedgraft.client.enrolment.home import Joined, SiteHome
from fedgraft.client.enrolment.members import pin, pins_of, settings, write_mask_keys
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import CONFIGS, is_there, make_folder, write_atomic
from fedgraft.common.identity.enrolment import SiteKeys, write_enrolment
from fedgraft.common.identity.keys import private_pem
from fedgraft.common.identity.kit import Kit, KitFacts, read_kit

_BEGUN = (".", "node.key", "masking.key", "ca.crt", "roster.json", "masks.json", "site.yaml")
"""How the names begin of what joining writes before its last file."""


@dataclass(frozen=True)
class Join:
    """What came of joining. `enrolment` is the file for the coordinator, None if it has the site's keys already."""

    joined: Joined
    enrolment: Path | None


def join(path: Path, code: str, cohort: CohortSpec, policy: SitePolicy, home: SiteHome) -> Join:
    """Make the site's folder from a kit, with fresh keys. InputError if there is one, or if the kit is not right.

    Where joining did not come to its end, it begins anew: those keys were in nobody's hands.
    """
    if home.has_joined or _strangers(home.path):
        raise InputError(f"{home.path} is in use.", fix="Choose another --home, or use `fedgraft site rejoin`.")
    kit = read_kit(path, code)
    demand_place(home.path)
    make_folder(home.path)
    keys = _new_keys(home)
    _write_authority(home, kit)
    known = {kit.facts.site: keys.member(kit.facts.site)}
    write_mask_keys(home, known)
    config = SiteConfig(
        secure_aggregation=settings(home, known),
        name=kit.facts.site,
        cohort=cohort,
        state=home.state,
        cache=home.cache,
        many_studies=True,
        server=_address(home, kit.facts),
        policy=policy,
    )
    write_atomic(home.config, _explained(config).encode(), private=True)
    enrolment = _enrolment(home, kit.facts, keys, code)
    joined = Joined(consortium=kit.facts.consortium, site=kit.facts.site, host=kit.facts.host, port=kit.facts.port)
    home.write_joined(joined)
    return Join(joined, enrolment)


def _strangers(folder: Path) -> list[str]:
    """What is in the folder and is not of a joining that broke off."""
    names = [path.name for path in folder.iterdir()] if is_there(folder) else []
    return [name for name in names if not name.startswith(_BEGUN) and not name.endswith(".enrolment.json")]


def _explained(config: SiteConfig) -> str:
    """The site's file for the people who keep it: every key, and what it means."""
    shipped = (CONFIGS / "sites" / "hospital.yaml").read_text(encoding="utf-8")
    keys = shipped[shipped.index("name:") :]
    head = (
        "# This hospital's own configuration. It never leaves the hospital and holds no secret. Change what you like,\n"
        "# and see with `fedgraft site check STUDY` whether all is well. Relative paths count from this folder.\n"
    )
    return head + filled(keys, config.model_dump(mode="json"))


def rejoin(path: Path, code: str, home: SiteHome, *, keep_keys: bool = False) -> Join:
    """Take over a renewed kit, with fresh keys unless the old ones are kept: then the server alone is another.

    Data, state, approvals and pinned members stay as they are.
    """
    before, config = home.joined(), read_config(home.config)
    kit = read_kit(path, code)
    if (kit.facts.consortium, kit.facts.site) != (before.consortium, before.site):
        raise InputError(f"{path}: is for another site or consortium than {home.path}.")
    demand_place(home.path)
    _write_authority(home, kit)
    keys = None if keep_keys else _new_keys(home)
    pin(home, before.site, home.roster(), pins_of(home))
    address = _address(home, kit.facts)
    if config.server is None or config.server.address != address.address:
        change_values(home.config, {"server": address.model_dump(mode="json")})
    joined = before.model_copy(update={"host": kit.facts.host, "port": kit.facts.port})
    home.write_joined(joined)
    return Join(joined, None if keys is None else _enrolment(home, kit.facts, keys, code))


def _enrolment(home: SiteHome, facts: KitFacts, keys: SiteKeys, code: str) -> Path:
    path = home.path / f"{facts.site}.enrolment.json"
    write_enrolment(path, facts.consortium, facts.site, keys, code)
    return path


def _new_keys(home: SiteHome) -> SiteKeys:
    # Unlocked, since a site starts without anybody there to type; the folder is its owner's alone.
    keys = SiteKeys.new()
    write_atomic(home.node_file, private_pem(keys.node), private=True)
    write_atomic(home.masking_file, private_pem(keys.masking), private=True)
    return keys


def _address(home: SiteHome, facts: KitFacts) -> ServerAddress:
    host = f"[{facts.host}]" if ":" in facts.host else facts.host
    return ServerAddress(address=f"{host}:{facts.port}", ca=home.authority)


def _write_authority(home: SiteHome, kit: Kit) -> None:
    for name in ("ca.crt", "roster.json"):
        if name not in kit.files:
            raise InputError(f"The kit has no {name}.")
        write_atomic(home.path / name, kit.files[name])
    home.roster()
