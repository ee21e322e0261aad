"""Provisioning: an authority, a server's folder and a kit per site, in one folder OUT.

OUT/authority holds the key that signs and belongs on no server; OUT/server is copied to the server; OUT/SITE.zip goes
to the site, and the code in OUT/SITE.code is told to it another way. Nothing here opens a key of a site: each makes its
own, and sends back the public halves, once for each code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, locked, make_folder, read_json, write_atomic, write_json
from fedgraft.common.identity.codes import new_code
from fedgraft.common.identity.enrolment import Enrolment, read_enrolment
from fedgraft.common.identity.keys import (
    NodeKey,
    load_certificate,
    load_masking_public,
    load_node_key,
    load_node_public,
)
from fedgraft.common.identity.kit import KitFacts, write_kit
from fedgraft.common.identity.roster import Member, Membership, SiteName, mask_roster, parse_membership
from fedgraft.common.secure_aggregation.mask_keys import verified
from fedgraft.server.provisioning.actions import ActionLog
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
Start-up kit of the site {site} in the consortium {consortium}. Nothing in it is secret.

1. fedgraft site join {site}.zip --data FOLDER --labels TABLE
   asks for the code that the coordinator told you, makes this site's keys, and writes {site}.enrolment.json:
   send that file to the coordinator. The keys stay here.
2. fedgraft site approve STUDY
3. fedgraft site start

The server is {host}, port {port}. The site connects to it; nothing connects to the site.
"""


@dataclass(frozen=True)
class Made:
    """What a call made: kits by site; and all sites whose public keys have not come yet."""

    kits: Mapping[str, Path]
    awaited: tuple[str, ...]


class Authority:
    """The folder OUT of a consortium, for whoever holds the authority's key."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folder = out / "authority"
        self.home = ServerHome(out / "server")
        self.actions = ActionLog(self._folder)

    @property
    def begun(self) -> bool:
        """Whether there is an authority already."""
        return (self._folder / "ca.key").exists()

    def provision(self, consortium: Consortium) -> Made:
        """Make what is not there yet: the first call makes all, later ones add sites. Nobody's keys change."""
        if not self.begun:
            self._start(consortium)
        with self._alone():
            return self._provision(consortium)

    def _provision(self, consortium: Consortium) -> Made:
        facts = ServerFacts(consortium=consortium.name, server=consortium.server)
        if facts.consortium != self.home.facts().consortium:
            raise InputError(f"{self._out} belongs to another consortium.", fix="Choose another --out.")
        self.home.write_facts(facts)
        write_json(self._folder / "consortium.json", consortium.model_dump(mode="json"))
        members = self._members()
        # Who was shut out stays out, though the file may still name it: only `renew_site` lets it in again.
        shut = {name for name, entry in self.home.sites().items() if entry.revoked}
        awaited = [name for name in consortium.sites if name not in members.keys() | shut]
        self._write_members(members)
        kits = {name: self._invite(facts, name) for name in awaited if not self.code_file(name).exists()}
        return Made(kits, tuple(awaited))

    def enrol(self, path: Path, grace: timedelta | None = None, sha256: str | None = None) -> Enrolment:
        """Take in the public keys that a site made, and with them its code: the next enrolment needs another.

        Keys that it had before hold for as long as `grace`, or the consortium, says, so that its work can end first.
        InputError if the file is not of this digest, which somebody has signed.
        """
        enrolment = read_enrolment(path, sha256)
        with self._alone():
            return self._enrol(path, enrolment, grace)

    def _enrol(self, path: Path, enrolment: Enrolment, grace: timedelta | None) -> Enrolment:
        name, members = enrolment.site, self._members()
        if enrolment.consortium != self._consortium().name:
            raise InputError(f"{path}: is for another consortium.", fix="Ask the site to join with its own kit.")
        code = self.code_file(name)
        if not code.exists():
            if members.get(name) == enrolment.member:
                return enrolment
            fix = (
                f"Add it to the consortium file and provision, or give it another with `fedgraft server renew {name}`."
            )
            raise InputError(f"{path}: {name} has no code that is still good.", fix=fix)
        if not enrolment.proves(_code(code)):
            raise InputError(f"{path}: was not made with the code of {name}.", fix="Ask that site, by telephone.")
        entry = self.home.sites().get(name)
        if entry is not None and entry.revoked and entry.node == enrolment.member.node:
            raise InputError(
                f"{path}: these keys were shut out.", fix="Ask the site to make others with `site rejoin`."
            )
        if grace is None:
            grace = timedelta(hours=self._consortium().renewal_grace_hours)
        self._write_members(members | {name: enrolment.member}, grace)
        code.unlink()
        return enrolment

    def revoke(self, name: str) -> None:
        """Shut a site out: from the server within seconds, and from the roster. Its kit and code are deleted."""
        with self._alone():
            self._revoke(name)

    def _revoke(self, name: str) -> None:
        members, code = self._members(), self.code_file(name)
        if members.pop(name, None) is None and not code.exists():
            raise InputError(f"There is no site {name} in {self._out}.", fix="See `fedgraft server sites`.")
        for path in (code, self._kit(name)):
            path.unlink(missing_ok=True)
        if name not in self.home.sites():
            self.home.write_sites(self.home.sites() | {name: Enrolled(node="", revoked=today())})
        self._write_members(members)

    def renew_server(self) -> None:
        """Give the server new certificates; sites notice nothing."""
        self._certify(self._consortium(), self._certificate(), self._key())

    def _certify(self, consortium: Consortium, certificate: x509.Certificate, key: NodeKey) -> None:
        server = consortium.server
        gate = server_certificate(certificate, key, _distinct(server.host, *server.names), consortium.valid_days)
        # The server's own processes talk over loopback; sites never see this certificate.
        inner = server_certificate(certificate, key, _LOOPBACK, consortium.valid_days)
        for issued, (crt, private) in ((gate, self.home.gate), (inner, self.home.inner)):
            write_atomic(private, issued.key, private=True)
            write_atomic(crt, issued.certificate)

    def renew_site(self, name: str) -> Path:
        """Give a site a new kit and code. Its keys, if it has any, are good until those come that it makes anew."""
        if name not in self._consortium().sites:
            raise InputError(f"There is no site {name} in {self._out}.", fix="Is it in the consortium file?")
        with self._alone():
            self._members()  # a roster that cannot be read goes into no kit
            return self._invite(self.home.facts(), name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes who is a member meanwhile: what one has shut out, another would let in again."""
        with locked(self._folder / "roster"):
            yield

    def code_file(self, name: str) -> Path:
        """Where the code of a site is that it has not used yet."""
        return self._out / f"{name}.code"

    def _start(self, consortium: Consortium) -> None:
        if self._out.exists() and any(self._out.iterdir()):
            raise InputError(
                f"{self._out} is not empty and holds no authority.", fix="Choose another --out, or remove it."
            )
        demand_place(self._out)
        for folder in (self._out, self._folder, self.home.path):
            make_folder(folder)
        issued = new_authority(consortium.name)
        for path in (self._folder / "ca.crt", self.home.authority):
            write_atomic(path, issued.certificate)
        write_json(self._folder / "consortium.json", consortium.model_dump(mode="json"))
        self.home.write_facts(ServerFacts(consortium=consortium.name, server=consortium.server))
        self._certify(consortium, self._certificate(), load_node_key(issued.key, "ca.key"))
        # Last: with it there is an authority, and what comes later can be made up for by another call.
        write_atomic(self._folder / "ca.key", issued.key, private=True)

    def _invite(self, facts: ServerFacts, name: str) -> Path:
        """A kit for a site, and the code with which its keys are taken in."""
        server, code = facts.server, new_code()
        about = KitFacts(consortium=facts.consortium, site=name, host=server.host, port=server.port)
        readme = _README.format(site=name, consortium=facts.consortium, host=server.host, port=server.port)
        files = {
            "ca.crt": self._certificate().public_bytes(Encoding.PEM),
            "roster.json": (self._out / "roster.json").read_bytes(),
            "README.txt": readme.encode(),
        }
        write_kit(self._kit(name), about, files, code)
        write_atomic(self.code_file(name), f"{code}\n".encode(), private=True)
        return self._kit(name)

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
        verified(mask_roster(members).entries, roster.identities())
        known = self.home.sites()
        sites = {
            name: entry.model_copy(update={"revoked": entry.revoked or today(), "old": ()})
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


def _code(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        raise InputError(f"{path}: holds no code.", fix="Make another with `fedgraft server renew SITE`.") from None


def _distinct(*names: str) -> list[str]:
    return list(dict.fromkeys(names))
