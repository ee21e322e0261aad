"""Sites that join a consortium from their kits and are enrolled."""

from __future__ import annotations

from pathlib import Path

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import join
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.identity.keys import fingerprint, public_pem
from fedgraft.server.provisioning.provision import Authority

COHORT = CohortSpec(kind="images", root=Path("images"))


def code_of(kits: Path, site: str = "north") -> str:
    return (kits / f"{site}.code").read_text().strip()


def joined(kits: Path, site: str = "north", folder: Path | None = None) -> SiteHome:
    """A site that has unpacked its kit and made its keys, and is not enrolled yet."""
    home = SiteHome(folder or kits.parent / site)
    join(kits / f"{site}.zip", code_of(kits, site), COHORT, SitePolicy(), home)
    return home


def enrolled(kits: Path, site: str = "north", folder: Path | None = None) -> SiteHome:
    """The same, and the coordinator has taken in its public keys."""
    home = joined(kits, site, folder)
    Authority(kits).enrol(home.path / f"{site}.enrolment.json")
    return home


def fingerprint_of(home: SiteHome) -> str:
    """What people at a site read out on the telephone."""
    return fingerprint(public_pem(home.node_key()).decode())
