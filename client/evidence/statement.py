"""What all of a site's evidence begins with: which run it is about, and the key that it is signed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from fedgraft.client.enrolment.config import SiteConfig, read_site, site_home
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.governance.egress import EgressEntry, EgressLog
from fedgraft.client.governance.plugins import allowed_to_look
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, make_folder, write_atomic, write_json
from fedgraft.common.config.config_files import read_mapping
from fedgraft.common.evidence.signed_parts import Document, Kind, SignedHead, read_document, signed_document
from fedgraft.common.identity.keys import NodeKey, load_node_key, new_node_key, private_pem, public_pem
from fedgraft.common.study.study import Study, parse_study

_RELEASES = ("update", "secure_aggregation")


@dataclass(frozen=True)
class Statement:
    """A site's folder, and the run that something is stated about."""

    home: Path
    config: SiteConfig
    run: Path
    study: Study

    @classmethod
    def of(cls, home: Path | None, run: Path) -> Statement:
        """InputError if the run has no study, or this site's log tells of nothing that it sent for it.

        PolicyError if the study names code that the site's policy does not list; none of that is run.
        """
        source = run / "study.yaml"
        if not is_there(source):
            fix = "Give the folder of a finished run, with study.yaml and the model in it."
            raise InputError(f"{run}: has no study.yaml.", fix=fix)
        folder = site_home(home)
        config = read_site(folder)
        with allowed_to_look(config.policy):
            study = parse_study(read_mapping(source), str(source))
        found = cls(folder, config, run, study)
        if not any(entry.kind in (*_RELEASES, "release") for entry in found.sent):
            raise InputError(
                f"{run}: this site's egress log tells of no update to its study {found.study.digest[:12]}.",
                fix="Give the run of a study that this site trained in, or another --home.",
            )
        return found

    @cached_property
    def sent(self) -> tuple[EgressEntry, ...]:
        """All messages of the study, in order; LedgerError if the log cannot be trusted."""
        log = EgressLog(self.config.state, self.config.witness)
        return tuple(entry for entry in log.entries() if entry.study == self.study.digest)

    def update(self, exchange: int) -> EgressEntry | None:
        """What the site sent first in an exchange with work; None if it sent no update."""
        return next((one for one in self.sent if one.exchange == exchange and one.kind in _RELEASES), None)

    @property
    def folder(self) -> Path:
        """Where the site keeps its evidence about this study."""
        return self.config.state / "evidence" / self.study.digest[:16]

    def write(self, kind: Kind, parts: Mapping[str, Mapping[str, Any]], lines: Sequence[str] = ()) -> Document:
        """Sign the parts, and write them as JSON, and the lines for people beside it, if there are some."""
        key, identity = self._key()
        head = SignedHead(
            kind=kind,
            site=self.config.name,
            study=self.study.digest,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            key=public_pem(key).decode(),
            identity=identity,
            parts=tuple(parts),
        )
        document = signed_document(head, parts, key)
        make_folder(self.folder)
        write_json(self.folder / f"{kind}.json", document.plain(), private=True)
        if lines:
            write_atomic(self.folder / f"{kind}.txt", "".join(f"{line}\n" for line in lines).encode(), private=True)
        return document

    def read(self, kind: Kind) -> Document | None:
        """What was written of that kind; None if nothing was. InputError if it was changed since."""
        path = self.folder / f"{kind}.json"
        if not is_there(path):
            return None
        document = read_document(path)
        if faults := document.faults():
            raise InputError(f"{path}: {'; '.join(faults)}.", fix=f"Make it again: fedgraft site {kind} {self.run}")
        return document

    def _key(self) -> tuple[NodeKey, Any]:
        """The site's key in its consortium; one that is drawn once, for a site that joined none."""
        home = SiteHome(self.home)
        if home.has_joined:
            return home.node_key(), "consortium"
        path = self.home / "evidence.key"
        if not is_there(path):
            write_atomic(path, private_pem(new_node_key()), private=True)
        return load_node_key(path.read_bytes(), str(path)), "drawn"
