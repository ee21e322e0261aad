"""What `fedgraft site` does: read, act, and say what came of it."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedgraft.client.data.kinds import reader_plugin
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_config, read_site
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import Join
from fedgraft.client.enrolment.join import join as join_consortium
from fedgraft.client.enrolment.join import rejoin as rejoin_consortium
from fedgraft.client.enrolment.members import update_roster
from fedgraft.client.privacy.policy import SitePolicy, read_policy
from fedgraft.common.base.console.terminal import Terminal
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.config.config_files import describe
from fedgraft.common.identity.keys import fingerprint, public_pem

_out = Terminal(soft_wrap=True, highlight=False)


def join(kit: Path, home: Path, code: str, cohort: Mapping[str, Any], policy: Path | None) -> None:
    """Take in a kit, and make the site's keys."""
    spec = cohort_of(cohort)
    _demand_data(spec)
    site = SiteHome(home)
    own = read_policy(policy) if policy is not None else SitePolicy()
    done = join_consortium(kit, code, spec, own, site)
    _say(f"{done.joined.site} joined {done.joined.consortium}; its folder is {site.path}")
    _say_enrolment(site, done)
    if (reader := reader_plugin(spec.kind)) is not None:
        _say(f"{reader} reads its data, and must stand in `plugins` of its policy; see fedgraft site plugins")
    elif not spec.knows_patients:
        case = spec.what.case
        _say(
            f"Nothing says whose {case} each {case} is, so studies with differential privacy will be refused: name the "
            f"column as patient_column in {site.config}, or set unit: image in its policy if each {case} may count by "
            "itself."
        )


def cohort_of(typed: Mapping[str, Any]) -> CohortSpec:
    """The cohort that was typed. StudyError with every fault."""
    try:
        return CohortSpec.model_validate(typed)
    except ValidationError as error:
        raise StudyError("the cohort", describe(error)) from None


def _demand_data(spec: CohortSpec) -> None:
    """InputError unless the data are where somebody says that they are; a wrong path would be found days later.

    Of a plug-in's reader, which the policy may not allow, nothing is run to ask what it takes.
    """
    if reader_plugin(spec.kind) is not None:
        wrong = not spec.root.exists() and f"--data {spec.root}: is not there"
    elif spec.what.one_file:
        wrong = not spec.root.is_file() and f"--data {spec.root}: is no file"
    else:
        wrong = not spec.root.is_dir() and f"--data {spec.root}: is no folder"
    if not wrong and spec.labels is not None and not spec.labels.is_file():
        wrong = f"--labels {spec.labels}: is no file"
    if wrong:
        raise InputError(f"{wrong}.", fix="Give the path as it is on this machine, and join again.")


def rejoin(kit: Path, home: Path, code: str, *, keep_keys: bool) -> None:
    """Take over a renewed kit."""
    site = SiteHome(home)
    done = rejoin_consortium(kit, code, site, keep_keys=keep_keys)
    _say(f"{done.joined.site} has taken over {kit}")
    _say_enrolment(site, done)


def roster(path: Path | None, home: Path, accept: Sequence[str]) -> None:
    """Take over a newer roster, pin members, and say who is pinned."""
    site = SiteHome(home)
    found = update_roster(site, path, _typed(accept))
    _say(f"Roster {found.serial}. Other sites ask you for this site's fingerprint: {_fingerprint(site)}")
    _say(f"Pinned, so that this site masks with them: {', '.join(found.pinned)}")
    if found.unpinned:
        _say(f"Not pinned, so that it masks in no group with them: {', '.join(found.unpinned)}")
        _say("Ask each for its fingerprint by telephone, and type: fedgraft site roster --accept NAME=FINGERPRINT")


def _typed(accept: Sequence[str]) -> dict[str, str]:
    typed = {}
    for one in accept:
        name, equals, fingerprint = one.partition("=")
        if not equals:
            fix = "A person at that site reads it to you, from what `fedgraft site roster` says there."
            raise InputError(f"--accept {one}: give NAME=FINGERPRINT.", fix=fix)
        typed[name] = fingerprint
    return typed


def _say_enrolment(site: SiteHome, done: Join) -> None:
    if done.enrolment is not None:
        _say(f"Send {done.enrolment} to the coordinator; its keys stay here. Start the site when it is enrolled.")
        _say(f"Other sites ask you for this site's fingerprint: {_fingerprint(site)}")


def _fingerprint(site: SiteHome) -> str:
    return fingerprint(public_pem(site.node_key()).decode())


def start(home: Path, *, as_json: bool) -> None:
    """Take part until told to stop. LedgerError if records of the site were lost."""
    from fedgraft.client.cli.records_commands import demand_agreement
    from fedgraft.client.runtime.executor import run_site
    from fedgraft.client.training.model.features import forget_features
    from fedgraft.common.base.logs import start_logs

    site = SiteHome(home)
    site.joined()
    start_logs(site.path / "logs" / "site.log", as_json=as_json)
    with contextlib.suppress(StudyError):  # what is wrong with the site's file, its answers say
        config = read_config(site.config)
        demand_agreement(config, site.config.parent)
        forget_features(config.state)
    stop = threading.Event()

    def asked_to_stop(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        logging.getLogger("fedgraft.site").info("stopping after the instruction at hand; once more stops at once")
        stop.set()

    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, asked_to_stop)
    run_site(site, stop)


def show_metrics(home: Path, port: int) -> None:
    """Figures for Prometheus about this site, on the loopback address, until told to stop."""
    from fedgraft.client.runtime.exposition import exposed
    from fedgraft.common.base.exposition import demand_client
    from fedgraft.common.base.local_pages import LocalPages

    demand_client()
    config = read_site(home)
    with LocalPages({"/metrics": lambda: exposed(config)}, "127.0.0.1", port, "--port") as pages:
        _say(f"{pages.url}metrics shows this site's figures to this machine, until Ctrl-C")
        pages.serve_forever()


def _say(text: str) -> None:
    _out.print(text, markup=False)
