"""Whether an instruction is one that the approved study has, and whether it is its turn.

The site derives what exchange k is from the study alone: stage, round, what is evaluated, whether there is work. An
instruction that says otherwise, or comes out of turn, is refused, whatever its reason may be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.masking.masked_upload import Accepted, Sealer
from fedgraft.client.runtime.visit.progress import Progress
from fedgraft.common.protocol.instructions import Code, Instruction
from fedgraft.common.secure_aggregation.summing import METRICS
from fedgraft.common.study.inputs import Split
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.schedule import Step, split_at, stage_before, stage_of, step_at
from fedgraft.common.study.study import Study


@dataclass(frozen=True)
class Turn:
    """An instruction that the site takes up, and what it is by the study.

    `evaluate` is the split that is evaluated, if any; `stage` the one of this exchange, and `before` the one whose
    result came with it. `accepted` are the parts that go into sums.
    """

    instruction: Instruction
    step: Step
    stage: Stage
    before: Stage | None
    evaluate: Split | None
    accepted: Accepted | None

    @property
    def exchange(self) -> int:
        """Its number, from 1."""
        return self.step.exchange

    @property
    def work(self) -> bool:
        """Whether there is work to do."""
        return self.instruction.work


class Admission:
    """One site's door in one study. `guard` is None for an observer; `sealer` masks, if the study asks for it.

    `begin_anew` puts away what an earlier course of the study has left.
    """

    def __init__(
        self,
        study: Study,
        progress: Progress,
        begin_anew: Callable[[], None],
        guard: PrivacyGuard | None,
        sealer: Sealer | None,
    ) -> None:
        self._study = study
        self._progress = progress
        self._begin_anew = begin_anew
        self._guard = guard
        self._sealer = sealer

    def admit(self, instruction: Instruction) -> Turn:
        """What is to be done, on record from now on. Raises Refused."""
        if instruction.study != self._study.digest:
            raise Refused(Code.UNKNOWN_STUDY)
        if self._guard is not None:
            self._guard.demand_secure_aggregation()
        step = self._step(instruction)
        stage = stage_of(self._study, step)
        if self._guard is not None and instruction.work and not self._guard.asked_in(stage):
            raise Refused(Code.OUT_OF_TURN, f"stage {step.stage} is not for this site")
        if not self._progress.in_turn(step):
            raise Refused(Code.OUT_OF_TURN, f"exchange {step.exchange} after exchange {self._progress.last}")
        accepted = self._sealer.accept(instruction, stage) if self._sealer else None
        if self._progress.begins_anew(step):
            # First, and here: a course whose record is new must find no entries of the one before, whatever becomes
            # of the rest of this visit.
            self._begin_anew()
        self._progress.take_up(step, work=instruction.work)
        before = stage_before(self._study, step)
        # All sites are told the same, or their masks would not cancel; whoever masks no metrics need not find them.
        idle = accepted is not None and METRICS not in accepted.parts
        return Turn(instruction, step, stage, before, None if idle else instruction.evaluate, accepted)

    def _step(self, instruction: Instruction) -> Step:
        """The step that the study has under that number, if the instruction says the same of it."""
        step = step_at(self._study, instruction.exchange)
        if step is None:
            raise Refused(Code.OUT_OF_TURN, f"the study has no exchange {instruction.exchange}")
        if (instruction.stage, instruction.round) != (step.stage, step.round):
            said = f"stage {instruction.stage}, round {instruction.round}"
            raise Refused(Code.OUT_OF_TURN, f"exchange {step.exchange} is not {said}")
        if instruction.work != (step.work and self._guard is not None):
            raise Refused(Code.OUT_OF_TURN, f"exchange {step.exchange} with work {instruction.work}")
        if instruction.evaluate not in (None, self._split(step)):
            raise Refused(Code.OUT_OF_TURN, f"exchange {step.exchange} does not evaluate {instruction.evaluate}")
        return step

    def _split(self, step: Step) -> Split | None:
        if self._guard is None:
            return "all"
        return None if self._guard.is_source else split_at(self._study, step)
