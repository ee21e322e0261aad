"""A run that is pinned to what its sites answered before: how it greets them, and that it does not begin otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from fedgraft.common.agreement.agreement import SupplyAgreement
from fedgraft.common.base.errors import QuorumError
from fedgraft.common.protocol.instructions import Code, Hello
from fedgraft.common.study.study import Study

_BROKEN = {
    Code.COHORT_CHANGED: "has other cases than those over which it answered",
    Code.OTHER_AGREEMENT: "never gave the answer that stands under its name",
}


def hello_of(study: Study, agreement: SupplyAgreement | None) -> Hello:
    """The first word to all sites, with their own answers if the run is pinned to them."""
    if agreement is None:
        return Hello(study.to_json())
    return Hello(study.to_json(), agreement=agreement.digest, pins=agreement.pins)


def demand_agreed(absent: Mapping[str, Code]) -> None:
    """QuorumError if a site is not what it said before: whoever pins a run to an agreement wants no other run."""
    if broken := {site: code for site, code in absent.items() if code in _BROKEN}:
        told = "; ".join(f"{site} {_BROKEN[code]}" for site, code in sorted(broken.items()))
        fix = "Ask the sites again, with `fedgraft study ask`, and begin a new run with what they answer."
        raise QuorumError(f"The agreement does not hold: {told}.", fix=fix)
