"""What `fedgraft site` does: read, act, and say what came of it."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import join as join_consortium
from fedgraft.client.enrolment.join import rejoin as rejoin_consortium
from fedgraft.client.enrolment.join import update_roster
from fedgraft.client.privacy.policy import SitePolicy, read_policy
from fedgraft.common.base.config_files import describe
from fedgraft.common.base.errors import FedgraftError, StudyError
from fedgraft.common.identity.keys import fingerprint

_out = Console(soft_wrap=True, highlight=False)


def join(kit: Path, home: Path, passphrase: str, cohort: Mapping[str, Any], policy: Path | None) -> None:
    """Take in a kit."""
    try:
        spec = CohortSpec.model_validate(cohort)
    except ValidationError as error:
        raise StudyError("the cohort", describe(error)) from None
    site = SiteHome(home)
    own = read_policy(policy) if policy is not None else SitePolicy()
    done = join_consortium(kit, passphrase, spec, own, site)
    _say(f"{done.joined.site} joined {done.joined.consortium}; its folder is {site.path}")
    if not spec.knows_patients:
        case = "row" if spec.kind == "table" else "image"
        _say(
            f"Nothing says whose {case} a {case} is, so studies with differential privacy will be refused: name the "
            f"column as patient_column in {site.config}, or set unit: image in its policy if each {case} may count by "
            "itself."
        )
    if done.enrolment is not None:
        _say(f"Send {done.enrolment} to the coordinator, and compare by telephone: {fingerprint(done.public_key)}")


def rejoin(kit: Path, home: Path, passphrase: str) -> None:
    """Take over a renewed kit."""
    joined = rejoin_consortium(kit, passphrase, SiteHome(home))
    _say(f"{joined.site} has the keys and the server of {kit}; start the site again to use them")


def roster(path: Path, home: Path, accept: Collection[str]) -> None:
    """Take over a newer roster."""
    _say(f"roster {update_roster(path, SiteHome(home), accept)} is in use")


def start(home: Path, *, as_json: bool) -> None:
    """Take part until told to stop."""
    from fedgraft.client.runtime.executor import run_site
    from fedgraft.client.training.model.features import forget_features
    from fedgraft.common.base.logs import start_logs

    site = SiteHome(home)
    site.joined()
    start_logs(site.path / "logs" / "site.log", as_json=as_json)
    with contextlib.suppress(FedgraftError):  # what is wrong with the site's file, its answers say
        forget_features(read_config(site.config).state)
    stop = threading.Event()

    def asked_to_stop(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        logging.getLogger("fedgraft.site").info("stopping after the instruction at hand; once more stops at once")
        stop.set()

    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, asked_to_stop)
    run_site(site, stop)


def _say(text: str) -> None:
    _out.print(text, markup=False)
