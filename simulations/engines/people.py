"""The people of simulated hospitals, who decide on what is held: as whoever simulates them said, through the same door.

They look at the sites' folders, as people do, so that they work with any engine; the sites know nothing of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from fedgraft.client.governance.release.held_answers import HeldAnswers
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import FedgraftError, InputError, PolicyError
from fedgraft.common.identity.author import Author
from fedgraft.common.identity.person_book import PersonBook

SimulatedDecision = Literal["sign", "refuse"]

_LOOK_S = 0.2
_WHO = "simulation"
_log = logging.getLogger(__name__)


def demand_decision(policies: Mapping[str, SitePolicy], decides: SimulatedDecision | None) -> None:
    """InputError if a hospital holds what leaves, and nobody said what its people decide."""
    if asking := sorted(name for name, policy in policies.items() if policy.persons == "required"):
        raise InputError(
            f"{', '.join(asking)}: the policy says persons: required, and nobody is there who could sign.",
            fix="Leave it out of the scenario.",
        )
    holding = sorted(name for name, policy in policies.items() if policy.release == "hold")
    if holding and decides is None:
        raise InputError(
            f"{', '.join(holding)}: the policy says release: hold, and a simulation has no people.",
            fix="Say what they decide: `fedgraft simulate --release sign`, or refuse; or leave it out of the scenario.",
        )


@contextmanager
def people(homes: Collection[Path], study: str, decides: SimulatedDecision | None) -> Iterator[None]:
    """Decide within on all that the sites in `homes` hold of a study; nobody is there if `decides` is None."""
    if decides is None:
        yield
        return
    over = threading.Event()

    def work() -> None:
        while not over.wait(_LOOK_S):
            for home in homes:
                if any(one.decision is None for one in HeldAnswers(home, study).all()):
                    _decide(home, study, decides)

    busy = threading.Thread(target=work, name="people", daemon=True)
    busy.start()
    try:
        yield
    finally:
        over.set()
        busy.join()


def _decide(home: Path, study: str, decides: SimulatedDecision) -> None:
    """As it was said; what the site's own policy does not let go is refused."""
    from fedgraft.client.evidence.release import HeldRelease  # seconds to import, and few simulations hold anything

    held = HeldRelease.of(home, study)
    who = Author(_WHO, PersonBook(home), lambda: "", signs=False)
    if decides == "sign":
        try:
            if held.config.policy.release_membership_auc_max is not None:
                held.audit()
            held.decide("signed", who)
            return
        except PolicyError as error:
            _log.warning("%s", error)
        except FedgraftError:
            _log.exception("what is held cannot be signed")
    held.decide("refused", who)
