"""The proximal loss keeps entries near fixed ones: FedProx, L2-SP and Ditto differ in which these are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedgraft.client.training.losses.base import Regulariser, Visit
from fedgraft.common.methods.memory.given import Start
from fedgraft.common.study.stages.losses import Proximal


def proximal_term(spec: Proximal, visit: Visit) -> Regulariser:
    """The gradient w - a of |w - a|^2 / 2, over the trained parameters that have an `a`."""
    towards, parameters = _towards(spec, visit), visit.local_model.parameters
    return lambda: {key: parameters[key].detach() - centre for key, centre in towards.items()}


def _towards(spec: Proximal, visit: Visit) -> Mapping[str, Tensor]:
    """The entries `a` by parameter; heads, of which nothing came pretrained, have none with `to: pretrained`."""
    visit_context = visit.visit_context
    if spec.to == "round":
        return {key: visit.local_model.parameters[key].detach().clone() for key in visit.trained}
    if spec.to == "global":
        return {key: visit.tensor(visit_context.received[key]) for key in visit.trained}
    start = visit_context.came.get("", Start) or Start({})
    return {key: visit.tensor(start.entries[key]) for key in visit.trained if key in start.entries}
