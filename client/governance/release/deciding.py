"""What a person at the site decided about a held answer: in the egress log first, and then where the site looks."""

from __future__ import annotations

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.release.held_answers import (
    FOLDER,
    Decision,
    HeldAnswer,
    HeldAnswers,
    Verdict,
    decision,
)
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import locked
from fedgraft.common.identity.author import Author


def decide(config: SiteConfig, held: HeldAnswer, verdict: Verdict, by: Author) -> Decision:
    """Put a decision on record, for ever. InputError if somebody has decided before, or does not sign.

    Without the line in the log nothing leaves: a crash in between leaves the answer where it was.
    """
    answers = HeldAnswers(config.state, held.study)
    with locked(config.state / FOLDER / held.study):
        if any(one.exchange == held.exchange and one.decision is not None for one in answers.all()):
            raise InputError(f"Exchange {held.exchange} of study {held.study[:12]} is decided already.")
        made = decision(verdict, held, by.name)
        made = made.model_copy(update={"signed": by.sign(made.words(held))})
        log = EgressLog(config.state, config.witness, sync=config.sync)
        log.decided(held.study, held.exchange, made.model_dump(mode="json"))
        answers.decide(held, made)
    return made
