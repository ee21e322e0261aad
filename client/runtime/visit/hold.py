"""Whether what a site has worked out may leave, where its policy holds the last that leaves of a study.

The final step follows from the approved study alone. From there on nothing leaves before a person has signed an answer;
while one waits, the study gets nothing else either, whatever is asked. A refusal is the end of the study at this site,
also if the policy is another one by then.
"""

from __future__ import annotations

from typing import NoReturn

from fedgraft.client.governance.release.held_answers import HeldAnswer, HeldAnswers
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.protocol.instructions import Arrays, Code, Update
from fedgraft.common.study.schedule import Step, stage_of
from fedgraft.common.study.study import Study


class ReleaseHold:
    """The hold of one study at one site. `final` is the exchange of the final step; None if policy holds nothing.

    `persons` are the site's, whose signature a release must have where it is `required`; else a name will do.
    """

    def __init__(self, held: HeldAnswers, final: int | None, persons: PersonBook, *, required: bool) -> None:
        self._held = held
        self._persons, self._required = persons, required
        self._final = final

    def demand_not_refused(self) -> None:
        """Raise Refused if people have decided that nothing more of the study leaves."""
        self._not_refused()

    def demand_decided(self) -> None:
        """The same, and also as long as an answer waits for a decision."""
        found = self._not_refused()
        if waiting := [one.exchange for one in found if one.decision is None]:
            raise Refused(Code.HELD, f"exchange {waiting[0]} waits for a person: fedgraft site release")
        for one in found:
            said = one.decision
            if said is None or not self._persons.counts(said.signed, said.words(one), required=self._required):
                raise Refused(Code.POLICY, f"no person of this site has signed the release of exchange {one.exchange}")

    def _not_refused(self) -> tuple[HeldAnswer, ...]:
        """All that is held, read once; Refused as above."""
        found = self._held.all()
        if any(one.decision is not None and one.decision.decision == "refused" for one in found):
            raise Refused(Code.RELEASE_REFUSED, "people at this site have refused to release what the study would get")
        return found

    def signed(self, exchange: int) -> Update | None:
        """The answer to this exchange that a person has let go; None if there is none."""
        found = (one for one in self._held.all() if one.exchange == exchange and one.decision is not None)
        return next((one.update() for one in found if one.decision and one.decision.decision == "signed"), None)

    def holds(self, exchange: int) -> bool:
        """Whether an answer to this exchange waits: none was signed before it since the final step."""
        return self._final is not None and exchange >= self._final and not self._covered(exchange)

    def _covered(self, exchange: int) -> bool:
        return any(one.exchange <= exchange and one.decision is not None for one in self._held.all())

    def hold(self, study: Study, step: Step, update: Update, received: Arrays, why: str) -> NoReturn:
        """Keep the answer for a person, and raise Refused. `received` is the model that came, `why` the grounds."""
        stage = stage_of(study, step).name if step.work else "evaluate"
        self._held.hold(study, (stage, step.round), update, received, why)
        raise Refused(Code.HELD, f"exchange {update.exchange} is worked out, and waits for a person")

    def begin_anew(self) -> None:
        """A new course of the study: what was signed in the one before is no answer in this one."""
        self._held.set_aside()
