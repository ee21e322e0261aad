"""`fedgraft poc up`: found a local consortium, run a study on it, show it on a web page, and clean up."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import FedgraftError, InputError
from fedgraft.common.base.files import private_folder
from fedgraft.server.cli import commands as server_commands
from fedgraft.server.operations.deploy import Wait
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.web import Page
from fedgraft.simulations.api.simulate import Chosen, choose
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.poc.consortium import LocalConsortium, first
from fedgraft.simulations.poc.parts import Parts

_WAIT_S = 300.0


@dataclass(frozen=True)
class UpRequest:
    """What was asked of `fedgraft poc up`."""

    study: Path
    sites: int
    out: Path
    scenario: str | None = None
    overrides: tuple[str, ...] = ()
    port: int = 0
    stay: bool = False
    remove: bool = False


def up(asked: UpRequest) -> None:
    """Run a study on a whole consortium on this machine. Raises as `fedgraft server run` does, or for a failed part.

    Nothing runs any more afterwards. The folder stays unless it is to be removed; after a failure it stays anyway.
    """
    if asked.out.exists() and any(asked.out.iterdir()):
        raise InputError(f"{asked.out} is not empty.", fix="Choose another --out, or remove it.")
    demand_place(asked.out)
    chosen = choose(asked.study, asked.overrides, asked.scenario)
    try:
        with private_folder(asked.out):
            _run(asked, chosen)
    except FedgraftError:
        if asked.remove:
            say(f"{asked.out} is kept, since it says what went wrong.")
        raise
    except KeyboardInterrupt:
        _remove(asked)
        raise
    _remove(asked)


def _run(asked: UpRequest, chosen: Chosen) -> None:
    local = LocalConsortium(asked.out.resolve())
    everybody = hospitals_of(chosen.scenario)
    names = first(everybody, asked.sites)
    hospitals = replace(everybody, cohorts={name: everybody.cohorts[name] for name in names})
    with Parts(local.folder / "output") as parts:
        _start(local, hospitals, chosen, parts)
        with _page(local.server, asked.port) as url:
            say(f"Web page of the run: {url}")
            request = server_commands.RunRequest(local.study_file, asked.out / "run", None, ())
            try:
                server_commands.run(local.server.path, request, Wait(None, _WAIT_S))
            finally:
                if chosen.scenario.synthetic:
                    say("Phantoms prove the machinery, not clinical benefit.")
            if asked.stay:
                _stay(local, url, parts)
    say("Nothing of it runs any more.")


def _start(local: LocalConsortium, hospitals: Hospitals, chosen: Chosen, parts: Parts) -> None:
    names = ", ".join(hospitals.cohorts)
    port = local.provision(tuple(hospitals.cohorts))
    say(f"Provisioned in {local.kits}: an authority, a server, and a kit for each of {names}.")
    parts.start("server", "server", "start", "--home", local.server.path)
    local.take_in(hospitals, chosen.study)
    say(f"{names} joined, were enrolled, pinned each other, and approved {chosen.study.digest[:12]}.")
    parts.await_port(port)
    for name in hospitals.cohorts:
        parts.start(name, "site", "start", "--home", local.site(name).path)
    say(f"The server (loopback, port {port}) and {len(hospitals.cohorts)} sites are started, each a process.")


@contextmanager
def _page(server: ServerHome, port: int) -> Iterator[str]:
    """Serve the live page within; its address."""
    with Board(server, None) as board, Page(board, "127.0.0.1", port) as page:
        serving = threading.Thread(target=page.serve_forever, daemon=True)
        serving.start()
        try:
            yield page.url
        finally:
            page.shutdown()
            serving.join()


def _stay(local: LocalConsortium, url: str, parts: Parts) -> None:
    """Leave all of it running until somebody ends it: then the study has ended well all the same."""
    say(f"All of it goes on, {url} too, until Ctrl-C. Another study: approve it at each site, and run it:")
    say(f"  fedgraft site approve STUDY --home {local.folder / 'sites'}/NAME")
    say(f"  fedgraft server run STUDY --home {local.server.path}")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        if parts.ended:
            raise


def _remove(asked: UpRequest) -> None:
    if asked.remove:
        shutil.rmtree(asked.out, ignore_errors=True)
        say(f"{asked.out} is removed.")
    else:
        say(f"Kits, sites, logs and the run are in {asked.out}.")
