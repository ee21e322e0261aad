"""What goes to sites in an exchange is put together once for all that hold and get the same."""

from __future__ import annotations

import numpy as np

from fedgraft.common.protocol.instructions import Digests
from fedgraft.server.fleet.fleet import Lacking

BACKBONE, OLD, NEW = np.ones(5), np.zeros(2), np.full(2, 3.0)
GOING = {"backbone": BACKBONE, "head": NEW}


def test_sites_that_hold_the_same_get_one_parcel_and_others_their_own() -> None:
    lacking, has = Lacking(Digests()), {"backbone": BACKBONE, "head": OLD}
    one, digest = lacking.of(GOING, has)
    assert one == {"head": NEW}
    assert digest == Digests().of({"backbone": BACKBONE})
    assert lacking.of(GOING, has)[0] is one
    assert lacking.of(GOING, {}) == (GOING, "")
    assert lacking.of(GOING, {**has, "head": NEW}) == ({}, Digests().of(GOING))
    # Equal values in another array are not what the site was sent.
    assert lacking.of(GOING, {"backbone": BACKBONE.copy(), "head": NEW})[0] == {"backbone": BACKBONE}


def test_the_next_exchange_is_put_together_anew() -> None:
    lacking, going, has = Lacking(Digests()), dict(GOING), dict(GOING)
    assert lacking.of(going, has)[0] == {}
    going["head"] = OLD
    lacking.forget()
    assert lacking.of(going, has)[0] == {"head": OLD}
