"""What a site's people may watch from outside, as figures for Prometheus: budget, messages, refusals, agreement.

All of it is what `fedgraft site budget` and `site egress` show. It is for the hospital alone: counts of refusals and
times of messages are not for the coordinator.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.budget import spent
from fedgraft.client.governance.egress import EgressLog
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.base.exposition import Figure, exposition


def exposed(config: SiteConfig) -> tuple[str, bytes]:
    """Content type and text. Records that cannot be trusted are a figure, and no figure is made of them."""
    try:
        figures, sound = [*_spent(config), *_left(config)], True
    except FedgraftError:
        figures, sound = [], False
    first = Figure("site_records_sound", "Whether the site's records can be read: 1 or 0.").add(sound)
    return exposition([first, *figures])


def _spent(config: SiteConfig) -> Iterator[Figure]:
    epsilon, refused = spent(config)
    lifetime = config.policy.epsilon_lifetime
    yield Figure("site_epsilon_spent", "Epsilon of all studies together, at the site's own delta.").add(epsilon)
    yield Figure("site_epsilon_lifetime", "The most epsilon that all studies may spend.").add(lifetime)
    yield Figure("site_charges_refused_total", "Charges that the budget did not allow.", "counter").add(refused)


def _left(config: SiteConfig) -> Iterator[Figure]:
    messages: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    newest = ""
    for entry in EgressLog(config.state, config.witness).entries():
        messages[entry.kind] += 1
        newest = entry.at
        if entry.kind == "refusal":
            codes[str(entry.words.get("code", ""))] += 1
    kinds = Figure("site_messages_total", "Messages that left the site, by kind.", "counter")
    for kind, count in sorted(messages.items()):
        kinds.add(count, kind=kind)
    refusals = Figure("site_refusals_total", "Instructions that the site refused, by code.", "counter")
    for code, count in sorted(codes.items()):
        refusals.add(count, code=code)
    idle = Figure("site_silent_seconds", "Seconds since the last message left.")
    yield from (kinds, refusals, idle.add(time.time() - datetime.fromisoformat(newest).timestamp() if newest else None))
