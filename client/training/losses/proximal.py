"""A pull to fixed entries: FedProx, L2-SP and Ditto are one term with three anchors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedgraft.client.training.losses.base import Pull, Visit
from fedgraft.common.protocol.auxiliary import PRETRAINED
from fedgraft.common.study.losses import Anchor


def anchor_term(term: Anchor, visit: Visit) -> Pull:
    """The gradient w - a of |w - a|^2 / 2, over the trained parameters that have an anchor."""
    anchors, parameters = _anchors(term, visit), visit.bench.parameters
    return lambda: {key: parameters[key].detach() - anchor for key, anchor in anchors.items()}


def _anchors(term: Anchor, visit: Visit) -> Mapping[str, Tensor]:
    """Parameters of which nothing came pretrained, the heads, have no anchor there."""
    around = visit.around
    if term.to == "round":
        return {key: visit.bench.parameters[key].detach().clone() for key in visit.trained}
    if term.to == "global":
        return {key: visit.tensor(around.received[key]) for key in visit.trained}
    names = {key: PRETRAINED + key for key in visit.trained}
    return {key: visit.tensor(around.aside[name]) for key, name in names.items() if name in around.aside}
