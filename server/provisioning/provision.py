"""Provisioning: an authority, a server's folder and a kit per site, in one folder OUT.

OUT/authority holds the key that signs and belongs on no server; OUT/server is copied to the server; OUT/SITE.zip goes
to the site, and what is in OUT/SITE.passphrase goes there another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, read_json, write_atomic, write_json
from fedgraft.common.identity.enrolment import read_enrolment
from fedgraft.common.identity.keys import (
    NodeKey,
    load_certificate,
    load_masking_public,
    load_node_key,
    load_node_public,
    new_masking_key,
    new_node_key,
    private_pem,
    public_pem,
)
from fedgraft.common.identity.kit import KitFacts, new_passphrase, write_kit
from fedgraft.common.identity.roster import Member, Membership, SiteName, parse_membership
from fedgraft.common.secure_aggregation.mask_keys import sign_entry, verified
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import (
    Enrolled,
    ServerFacts,
    ServerHome,
    today,
)
from fedgraft.server.provisioning.pki import new_authority, server_certificate

_LOOPBACK = ("localhost", "127.0.0.1")
_README = """\
Start-up kit of the site {site} in the consortium {consortium}.

1. fedgraft site join {site}.zip --data FOLDER --labels TABLE      asks for the passphrase
2. fedgraft site approve STUDY
3. fedgraft site start

The server is {host}, port {port}. The site connects to it; nothing connects to the site.
"""


@dataclass(frozen=True)
class Made:
    """What a call made: kits by site, and sites that make their own keys and are yet to send the public halves."""

    kits: Mapping[str, Path]
    awaited: tuple[str, ...]


class Authority:
    """The folder OUT of a consortium, for whoever holds the authority's key."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folder = out / "authority"
        self.home = ServerHome(out / "server")

    def provision(self, consortium: Consortium) -> Made:
        """Make what is not there yet: the first call makes all, later ones add sites. Nobody's keys change."""
        if not (self._folder / "ca.key").exists():
            self._start(consortium)
        facts = ServerFacts(consortium=consortium.name, server=consortium.server)
        if facts.consortium != self.home.facts().consortium:
            raise InputError(f"{self._out} belongs to another consortium.", fix="Choose another --out.")
        self.home.write_facts(facts)
        write_json(self._folder / "consortium.json", consortium.model_dump(mode="json"))
        members = self._members()
        # Who was shut out stays out, though the file may still name it: only `renew_site` lets it in again.
        shut = {name for name, entry in self.home.sites().items() if entry.revoked}
        new = [site for site in consortium.sites if site.name not in shut and not self._kit(site.name).exists()]
        locked: dict[str, tuple[bytes, bytes, str]] = {}
        for site in new:
            if site.keys == "enclosed":
                locked[site.name], members[site.name] = _new_keys(site.name)
        self._write_members(members)
        kits = {site.name: self._make_kit(facts, site.name, locked.get(site.name)) for site in new}
        awaited = tuple(site.name for site in consortium.sites if site.name not in members.keys() | shut)
        return Made(kits, awaited)

    def enrol(self, path: Path) -> str:
        """Take in the public keys that a site made; the site's name."""
        enrolment = read_enrolment(path)
        known, consortium = self._members().get(enrolment.site), self._consortium()
        if enrolment.consortium != consortium.name:
            raise InputError(f"{path}: is for another consortium.", fix="Ask the site to join with its own kit.")
        if enrolment.site not in {site.name for site in consortium.sites}:
            raise InputError(f"{path}: {enrolment.site} is not in the consortium.", fix="Add it to the file first.")
        if known is not None and known.node != enrolment.node:
            raise InputError(f"{path}: {enrolment.site} has other keys.", fix="Revoke them first.")
        member = Member(node=enrolment.node, masking=enrolment.masking, vouch=enrolment.vouch)
        self._write_members(self._members() | {enrolment.site: member})
        return enrolment.site

    def revoke(self, name: str) -> None:
        """Shut a site out: from the server within seconds, and from the roster. Its kit is deleted."""
        members = self._members()
        if members.pop(name, None) is None:
            raise InputError(f"There is no site {name} in {self._out}.", fix="See `fedgraft server sites`.")
        self._write_members(members)
        for path in (self._kit(name), self._kit(name).with_suffix(".passphrase")):
            path.unlink(missing_ok=True)

    def renew_server(self) -> None:
        """Give the server new certificates; sites notice nothing."""
        consortium = self._consortium()
        server, certificate, key = consortium.server, self._certificate(), self._key()
        gate = server_certificate(certificate, key, _distinct(server.host, *server.names), consortium.valid_days)
        # The server's own processes talk over loopback; sites never see this certificate.
        inner = server_certificate(certificate, key, _LOOPBACK, consortium.valid_days)
        for issued, (crt, private) in ((gate, self.home.gate), (inner, self.home.inner)):
            write_atomic(private, issued.key, private=True)
            write_atomic(crt, issued.certificate)

    def renew_site(self, name: str, grace: timedelta | None = None) -> Path:
        """Give a site new keys in a new kit; the old ones hold for as long as `grace`, or the consortium, says."""
        if grace is None:
            grace = timedelta(hours=self._consortium().renewal_grace_hours)
        if name not in {site.name for site in self._consortium().sites}:
            raise InputError(f"There is no site {name} in {self._out}.", fix="See `fedgraft server sites`.")
        locked, member = _new_keys(name)
        self._write_members(self._members() | {name: member}, grace)
        return self._make_kit(self.home.facts(), name, locked)

    def _start(self, consortium: Consortium) -> None:
        if self._out.exists() and any(self._out.iterdir()):
            raise InputError(f"{self._out} is not empty and holds no authority.", fix="Choose another --out.")
        for folder in (self._out, self._folder, self.home.path):
            folder.mkdir(mode=0o700, parents=True)
        issued = new_authority(consortium.name)
        write_atomic(self._folder / "ca.key", issued.key, private=True)
        for path in (self._folder / "ca.crt", self.home.authority):
            write_atomic(path, issued.certificate)
        write_json(self._folder / "consortium.json", consortium.model_dump(mode="json"))
        self.home.write_facts(ServerFacts(consortium=consortium.name, server=consortium.server))
        self.renew_server()

    def _make_kit(self, facts: ServerFacts, name: str, locked: tuple[bytes, bytes, str] | None) -> Path:
        server = facts.server
        about = KitFacts(
            consortium=facts.consortium,
            site=name,
            host=server.host,
            port=server.port,
            keys_enclosed=locked is not None,
        )
        passphrase = new_passphrase() if locked is None else locked[2]
        readme = _README.format(site=name, consortium=facts.consortium, host=server.host, port=server.port)
        files = {
            "ca.crt": self._certificate().public_bytes(Encoding.PEM),
            "roster.json": (self._out / "roster.json").read_bytes(),
            "README.txt": readme.encode(),
        }
        if locked is not None:
            files |= {"node.key": locked[0], "masking.key": locked[1]}
        path = self._kit(name)
        write_atomic(path.with_suffix(".passphrase"), f"{passphrase}\n".encode(), private=True)
        write_kit(path, about, files, passphrase)
        return path

    def _members(self) -> dict[SiteName, Member]:
        source = self._out / "roster.json"
        return dict(parse_membership(read_json(source), str(source)).members) if is_there(source) else {}

    def _write_members(self, members: Mapping[SiteName, Member], grace: timedelta = timedelta(0)) -> None:
        """Sign the roster, and tell the server who may connect; who is not a member any more is revoked there."""
        for name, member in members.items():
            load_node_public(member.node.encode(), name)
            load_masking_public(member.masking.encode(), name)
        source = self._out / "roster.json"
        serial = parse_membership(read_json(source), str(source)).serial + 1 if is_there(source) else 1
        roster = Membership(consortium=self._consortium().name, serial=serial, members=dict(sorted(members.items())))
        verified(roster.mask_roster().entries, roster.identities())
        known = self.home.sites()
        sites = {
            name: Enrolled(node=entry.node, revoked=entry.revoked or today())
            for name, entry in known.items()
            if name not in members
        }
        for name, member in members.items():
            sites[name] = known.get(name, Enrolled(node=member.node)).renewed(member.node, grace)
        # Who is shut out is shut out first.
        self.home.write_sites(sites)
        roster.signed_by(self._key()).write(source)

    def _kit(self, name: str) -> Path:
        return self._out / f"{name}.zip"

    def _consortium(self) -> Consortium:
        source = self._folder / "consortium.json"
        try:
            return Consortium.model_validate(read_json(source))
        except ValidationError:
            raise InputError(f"{source}: is not valid.", fix="Provision again with the consortium's file.") from None

    def _certificate(self) -> x509.Certificate:
        return load_certificate(self._folder / "ca.crt")

    def _key(self) -> NodeKey:
        source = self._folder / "ca.key"
        if not source.is_file():
            raise InputError(f"{source}: the authority's key is not here.", fix="Run this where you provisioned.")
        return load_node_key(source.read_bytes(), str(source))


def _new_keys(site: str) -> tuple[tuple[bytes, bytes, str], Member]:
    """Private keys locked with a new passphrase, and their public halves."""
    node, masking, passphrase = new_node_key(), new_masking_key(), new_passphrase()
    vouch = sign_entry(site, masking.public_key(), node).signature
    member = Member(node=public_pem(node).decode(), masking=public_pem(masking).decode(), vouch=vouch)
    return (private_pem(node, passphrase), private_pem(masking, passphrase), passphrase), member


def _distinct(*names: str) -> list[str]:
    return list(dict.fromkeys(names))
