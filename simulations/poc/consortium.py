"""Founding a local consortium: kits, sites that join and are enrolled, pins, and the study's approval at each."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

from fedgraft.client.cli.governance_commands import decide
from fedgraft.client.enrolment.edit_yaml import change_values
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import join
from fedgraft.client.enrolment.members import Members, update_roster
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.identity.keys import fingerprint, public_pem
from fedgraft.common.study.study import Study
from fedgraft.server.provisioning.consortium import Consortium, ServerEntry
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.engines.run import OPEN, Hospitals, allowing, code_of

_HOST, _LISTEN = "localhost", "127.0.0.1"
_GIVEN_TO_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True)
class LocalConsortium:
    """A consortium in a folder: `kits` as the coordinator has them, `sites`/NAME as hospitals have theirs."""

    folder: Path

    @property
    def kits(self) -> Path:
        """What provisioning made."""
        return self.folder / "kits"

    @property
    def server(self) -> ServerHome:
        """The server's folder."""
        return ServerHome(self.kits / "server")

    @property
    def study_file(self) -> Path:
        """The study as all approve it: its overrides are in it."""
        return self.folder / "study.yaml"

    def site(self, name: str) -> SiteHome:
        """The folder of a site."""
        return SiteHome(self.folder / "sites" / name)

    def provision(self, sites: Sequence[str]) -> int:
        """Make authority, server and kits, and return the port on which the server will listen, on loopback alone."""
        port, inner = free_ports(2)
        server = ServerEntry(host=_HOST, port=port, listen=_LISTEN, inner_port=inner)
        Authority(self.kits).provision(Consortium(name="local", server=server, sites=tuple(sites)))
        return port

    def take_in(self, hospitals: Hospitals, study: Study) -> None:
        """All hospitals join with their data, are enrolled, pin each other and approve the study.

        PolicyError if one's policy refuses it; DataError if its data cannot be used.
        """
        write_atomic(self.study_file, study.to_yaml().encode())
        homes = [self._join(name, hospitals, study) for name in hospitals.cohorts]
        for home in homes:
            Authority(self.kits).enrol(home.path / f"{home.joined().site}.enrolment.json")
        pin_each_other(self.kits, homes)
        for home in homes:
            decide(home.path, str(self.study_file))

    def _join(self, name: str, hospitals: Hospitals, study: Study) -> SiteHome:
        home, authority = self.site(name), Authority(self.kits)
        code = authority.code_file(name).read_text(encoding="utf-8").strip()
        policy = allowing(code_of(study, hospitals.specs(name)), hospitals.policies.get(name, OPEN))
        join(self.kits / f"{name}.zip", code, hospitals.cohorts[name].below(Path.cwd()), policy, home)
        source = hospitals.sources.get(name)
        own = {
            "source": source and source.below(Path.cwd()).model_dump(mode="json"),
            "public_source": name in hospitals.public_sources,
            "threads": max(1, (os.cpu_count() or 1) // len(hospitals.cohorts)),
        }
        change_values(home.config, own)
        return home


def pin_each_other(kits: Path, homes: Sequence[SiteHome]) -> list[Members]:
    """Every site takes the newest roster and pins all the others, as their people do by telephone."""
    heard = {home.joined().site: fingerprint(public_pem(home.node_key()).decode()) for home in homes}
    return [
        update_roster(home, kits / "roster.json", {n: f for n, f in heard.items() if n != home.joined().site})
        for home in homes
    ]


def first(hospitals: Hospitals, count: int) -> list[str]:
    """The names of the first `count` hospitals. InputError if there are fewer, or a fault is to be played."""
    if count > len(hospitals.cohorts):
        raise InputError(
            f"--sites {count}: the scenario has {len(hospitals.cohorts)} hospitals.",
            fix="Ask for fewer, or give a scenario with more as --scenario.",
        )
    names = list(hospitals.cohorts)[:count]
    if played := sorted(set(names) & hospitals.faults.keys()):
        raise InputError(
            f"{played[0]} has `faults`, which are played in a simulation alone.", fix="Use `fedgraft simulate`."
        )
    return names


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback address on which nobody listens.

    They lie below those that the system gives to connections: nobody is given one before the server listens there.
    """
    try:
        first = int(_GIVEN_TO_CONNECTIONS.read_text(encoding="ascii").split()[0])
    except OSError:  # not Linux: they begin higher up
        first = 32768
    first = max(first, 2048)  # below 1024 nobody may listen
    found: list[int] = []
    for port in SystemRandom().sample(range(max(1024, first - 12000), first), k=min(1024, first - 1024)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((_LISTEN, port))
            found.append(port)
        if len(found) == count:
            return found
    raise RunError("Hardly a port of this machine is free.", fix="End some of the programs that listen.")
