"""Whose keys hide a site's part of a sum, tried with a whole consortium that is made up: promises against whoever
provisions, who writes the roster and may put members on it that do not exist."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import join
from fedgraft.client.enrolment.members import update_roster
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.keys import fingerprint, public_pem
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority

_VICTIM, _SITES = "north", ("north", "made_up_1", "made_up_2")


def members_nobody_pinned(folder: Path) -> Iterator[str]:
    """A victim and two sites that the coordinator made up join, and the roster names all three."""
    kits = folder / "kits"
    server = {"host": "localhost"}
    Authority(kits).provision(Consortium.model_validate({"name": "audit", "server": server, "sites": list(_SITES)}))
    homes = {name: _joined(kits, name, folder / name) for name in _SITES}
    victim, roster = homes[_VICTIM], kits / "roster.json"
    if _holds(kits, [path.read_bytes() for path in (victim.node_file, victim.masking_file)]):
        yield "the coordinator's folder holds private keys of a site"
    if (pinned := update_roster(victim, roster).pinned) != (_VICTIM,):
        yield f"the site masks with {', '.join(pinned)}, whom nobody at the site has pinned"
    other = fingerprint(public_pem(homes[_SITES[2]].node_key()).decode())
    try:
        update_roster(victim, roster, {_SITES[1]: other})
        yield "a member is pinned by a fingerprint that is not its own"
    except InputError:
        pass


def _joined(kits: Path, name: str, folder: Path) -> SiteHome:
    home, code = SiteHome(folder), (kits / f"{name}.code").read_text().strip()
    made = join(kits / f"{name}.zip", code, CohortSpec(kind="images", root=folder), SitePolicy(), home)
    if made.enrolment is not None:
        Authority(kits).enrol(made.enrolment)
    return home


def _holds(folder: Path, secrets: list[bytes]) -> bool:
    """Whether one of the secrets is in a file below a folder, or in a file that is packed into one."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                contents += [packed.read(name) for name in packed.namelist()]
        if any(secret in content for content in contents for secret in secrets):
            return True
    return False
