"""All that is tried of the server's promises."""

from __future__ import annotations

from fedgraft.simulations.audit.checks import Row
from fedgraft.simulations.audit.server.crowd import crowd_at_the_door
from fedgraft.simulations.audit.server.names import names_of_others
from fedgraft.simulations.audit.server.replies import lies_in_replies

CHECKS: tuple[Row, ...] = (
    ("lies in replies", "what one site sends costs nobody else anything", lies_in_replies),
    ("names of others", "no site speaks in another's name", names_of_others),
    ("crowd at the door", "no crowd keeps the sites out, and nobody else gets in unasked", crowd_at_the_door),
)
"""What the server promises."""
