"""A hospital's side of a study: cohort, device and the entries it keeps. `visit` answers one instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.masking.masked_upload import Sealer
from fedgraft.client.runtime.greeting import counts_of
from fedgraft.client.runtime.log import site_log
from fedgraft.client.runtime.visit.admission import Admission, Turn
from fedgraft.client.runtime.visit.choice import choose, receive
from fedgraft.client.runtime.visit.evaluation import evaluate, released
from fedgraft.client.runtime.visit.hold import ReleaseHold
from fedgraft.client.runtime.visit.local_state import LocalState
from fedgraft.client.runtime.visit.personal import Personal
from fedgraft.client.runtime.visit.progress import Progress, progress_file
from fedgraft.client.runtime.visit.work import Worker
from fedgraft.client.runtime.visit.workplace import Workplace
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.disk import DISK_FULL
from fedgraft.common.base.errors import ENDS, FedgraftError
from fedgraft.common.methods.memory.carried import up_shapes
from fedgraft.common.metrics.plugged import sums_of_arrays
from fedgraft.common.metrics.subgroups import names_of
from fedgraft.common.metrics.sums.task_metrics import TaskSums, arrays_of, sums_from
from fedgraft.common.privacy.accountant import Spend
from fedgraft.common.protocol.choosing import choices
from fedgraft.common.protocol.instructions import Answer, Arrays, Code, Greeting, Instruction, Refusal, Update
from fedgraft.common.protocol.routing import privacy_request, requires_source
from fedgraft.common.protocol.states import is_address
from fedgraft.common.secure_aggregation.masking import OutOfRange, brought_in
from fedgraft.common.secure_aggregation.summing import (
    METRICS,
    TENSORS,
    Summands,
    metric_summands,
    tensor_summands,
    with_all_groups,
)
from fedgraft.common.study.clusters import AnyClusters, ByLoss, group_of, groups_of
from fedgraft.common.study.schedule import last_exchange, step_at
from fedgraft.common.study.study import Study


class Site:
    """One hospital in one study.

    `guard` stands for the site's policy and ledger. Without one the site is an observer: its data are public, it
    evaluates models and is never asked to train. `sealer` masks all answers to a study with secure aggregation. `hold`
    keeps the last that leaves for a person to decide on; without one nothing waits.
    """

    def __init__(  # noqa: PLR0913 - all that a site is made of
        self,
        study: Study,
        cohort: Cohort,
        local_model: LocalModel,
        folder: Path,
        guard: PrivacyGuard | None,
        sealer: Sealer | None = None,
        *,
        hold: ReleaseHold | None = None,
        sync: bool = True,
    ) -> None:
        self.name = cohort.name
        self._study = study
        self._guard = guard
        self._sealer = sealer
        self._hold = hold
        keep = guard is None or guard.keeps_features
        noised = guard is not None and guard.metrics == "noised"
        self._place = Workplace(study, cohort, local_model, folder, keep_features=keep, noised=noised)
        self._log = site_log(folder)
        self._worker = Worker(self._place, self._log)
        self._local_state = LocalState(folder / "local_state" / study.digest, sync=sync)
        self._personal = Personal(folder / "local_state" / study.digest, sync=sync)
        self._progress = Progress(progress_file(folder, study.digest), sync=sync)
        self._admission = Admission(study, self._progress, self._begin_anew, guard, sealer)

    def greet(self) -> Greeting:
        """Who this site is and what it has, as counts. Raises Refused if its policy rules the study out.

        Under secure aggregation, where weights are hidden, counts are too.
        """
        if self._hold is not None:
            self._hold.demand_not_refused()
        if self._guard is not None:
            self._guard.admit(self._place.local_model.tags)
            if self._place.source is None and not self._guard.is_source and requires_source(self._study):
                raise Refused(Code.NO_SOURCE, "the study learns from a source at the site, whose file names none")
        if self._guard is None or not self._guard.is_source:
            self._refuse_without_cluster(self._study.clusters)
        been_here = self._progress.last > 0
        self._progress.greeted()
        labelled, shows = self._worker.is_labelled, self._shows_metrics
        if self._sealer is not None:
            nonce = self._sealer.greet(been_here=been_here)
            return Greeting(self.name, {}, {}, labelled=labelled, evaluates=shows, nonce=nonce)
        counts = counts_of(self._study, self._place.cohort, self._guard)
        source = self._guard is not None and self._guard.is_source
        return replace(counts, observer=self._guard is None, labelled=labelled, evaluates=shows, source=source)

    def _refuse_without_cluster(self, clusters: AnyClusters | None) -> None:
        """Raise Refused if the study will have no model for this site."""
        if groups_of(clusters) and group_of(clusters, self.name) is None:
            raise Refused(Code.NO_CLUSTER, "the study names the sites of each cluster, and this one is in none")
        if isinstance(clusters, ByLoss) and (self._guard is None or not self._worker.is_labelled):
            why = "sites choose their model by its loss on their labelled training cases, and here are none"
            raise Refused(Code.NO_CLUSTER, why)

    def visit(self, instruction: Instruction) -> Answer:
        """Carry out one instruction, and answer. Never raises: trouble is a constant code."""
        try:
            return self._visit(instruction)
        except Refused as refused:
            code = refused.code
            self._log.warning("exchange %d: %s", instruction.exchange, refused.why or code)
        except ENDS:
            raise
        except BaseException as error:  # the wall between a hospital and the network: no text may pass it
            code = _code_of(error)
            self._log.error("exchange %d failed", instruction.exchange, exc_info=_worth_a_trace(error))
        self._log.warning("exchange %d: refused, %s", instruction.exchange, code)
        # What the model holds is not known after a failure.
        self._place.local_model.touched(self._place.local_model.tags)
        return Refusal(instruction.exchange, code)

    def grounds(self, instruction: Instruction) -> str:
        """Why the site's policy lets out what it answers to `instruction`, for the egress log."""
        if self._guard is None:
            return "public data of an observer"
        stage = self._study.plan[instruction.stage] if instruction.work else None
        tags = self._place.local_model.tags
        step = step_at(self._study, instruction.exchange)
        chooses = step is not None and bool(choices(self._study, step, tags))
        also = "; which model the site took, which these tell of anyway" if chooses else ""
        plain = stage is not None and self._place.routing(stage).plain
        return self._guard.grounds(stage, plain=plain) + also

    def _visit(self, instruction: Instruction) -> Answer:
        """Admit, receive, evaluate, work, hold where policy says so, seal."""
        if self._hold is not None:
            self._hold.demand_decided()
        turn = self._admission.admit(instruction)
        receive(self._place, turn)  # first: what is refused leaves the site as it was
        before = self._local_state.before(turn.exchange)
        taken = choose(self._place, turn, before)
        if self._hold is not None and (released := self._hold.signed(turn.exchange)) is not None:
            return self._seal(turn, released, self._sums(released))
        metrics = evaluate(self._place, turn, before, shows=self._shows_metrics)
        update = self._work(turn, before) if turn.work else self._end(turn, before)
        update = replace(update, cluster=taken)
        if metrics:
            update = replace(update, metrics={task: arrays_of(sums) for task, sums in metrics.items()})
        if self._hold is not None and self._hold.holds(turn.exchange):
            self._hold.hold(self._study, turn.step, update, self._place.received.entries, self.grounds(instruction))
        return self._seal(turn, update, metrics)

    def _begin_anew(self) -> None:
        """A new course of the study begins: what the one before has left is put away."""
        self._local_state.set_aside()
        if self._hold is not None:
            self._hold.begin_anew()

    def _work(self, turn: Turn, before: Arrays) -> Update:
        """Do the stage's work, and keep what stays.

        Where policy shows no figures and nothing of the stage leaves, trouble does not leave either: that training
        went wrong would say something of the patients it was on. Of what the site uses only where it is better, figures
        do not leave, nor trouble.
        """
        assert self._guard is not None  # an observer is not admitted to work
        weights, personal = self._worker.weights(turn.stage, self._guard), turn.stage.personalise == "best"
        try:
            mine = {**before, **self._personal.before(turn.exchange)} if personal else before
            result = self._worker.work(turn, self._guard, mine, self._progress.worked)
        except Refused:
            raise
        except ENDS:
            raise
        except BaseException as error:
            closed = (personal or not self._shows_metrics) and self._place.routing(turn.stage).silent
            if not closed and not self._goes_on(turn, error):
                raise
            self._log.error("exchange %d failed in silence", turn.exchange, exc_info=_worth_a_trace(error))
            self._place.local_model.touched(self._place.local_model.tags)
            return self._nothing(turn, weights, self._guard.spend())
        if personal:
            self._personal.save(turn.exchange, result.own)
            return Update(turn.exchange, result.tensors, weights, {}, {}, self._guard.spend())
        if result.own:
            # What methods remembered for another stage is over with it; what they remember now is all in the result.
            entries = {key: array for key, array in before.items() if not is_address(key)}
            self._local_state.save(turn.exchange, {**entries, **result.own})
        return Update(turn.exchange, result.tensors, weights, result.figures, {}, self._guard.spend())

    def _goes_on(self, turn: Turn, error: BaseException) -> bool:
        """Whether work without noise under masks that went wrong by the site's cases is answered with nothing.

        The masks hide what a site puts into the sum, so that a refusal would be all that there is to see of it.
        """
        told = isinstance(error, TooFewCases | Diverged)
        return turn.accepted is not None and told and privacy_request(turn.stage) is None

    def _nothing(self, turn: Turn, weights: Mapping[str, float], spent: Spend | None) -> Update:
        """An update that says nothing, and under masks counts nothing."""
        if turn.accepted is None:
            return Update(turn.exchange, {}, weights, {}, {}, spent)
        forms, sums = self._place.local_model.forms, up_shapes(self._place.local_model.ground(turn.stage))
        wanted = {key: forms[key] for key in self._place.routing(turn.stage).sent}
        zeros = {key: np.zeros(*form) for key, form in {**wanted, **sums}.items()}
        return Update(turn.exchange, zeros, dict.fromkeys(weights, 0.0), {}, {}, spent)

    def _end(self, turn: Turn, before: Arrays) -> Update:
        """The answer to an instruction without work; to the last one, with what policy lets out once in a study."""
        update = Update(turn.exchange, {}, {}, {}, {})
        if turn.step.work:
            return update
        if self._guard is not None and self._is_last(turn):
            self._personal.choose(self._place, turn, before, self._log)
        if self._guard is not None and self._sealer is None and turn.evaluate == "test":
            try:
                metrics = released(self._place, turn, before, self._guard, self._progress.worked)
            except Refused as refused:
                self._log.warning("no metrics: %s", refused.why or refused.code)
                metrics = {}
            update = replace(update, metrics=metrics, spent=self._guard.spend())
        self._place.features.forget()
        return update

    def _seal(self, turn: Turn, update: Update, metrics: Mapping[str, TaskSums]) -> Answer:
        """The answer as it leaves: masked if the study says so, then with `metrics` in sums of their own."""
        if self._sealer is None or turn.accepted is None:
            return update
        summands: dict[str, Summands] = {}
        groups = turn.instruction.groups
        assert groups is not None
        if TENSORS in turn.accepted.parts:
            summands[TENSORS] = tensor_summands(update, turn.stage, self._place.local_model.tags)
        if METRICS in turn.accepted.parts and metrics:
            whole = with_all_groups(metrics, self._study) if self._is_last(turn) else metrics
            own = metric_summands(whole, update.train, self._study.evaluate.floor, self._study)
            summands[METRICS] = replace(own, arrays=brought_in(own.arrays, len(groups.parts[METRICS])))
        received = self._place.local_model.digests.of(self._place.received.everything)
        try:
            sealed = self._sealer.seal(turn.instruction, turn.accepted, summands, received)
        except OutOfRange:
            if TENSORS not in summands or privacy_request(turn.stage) is not None:
                raise
            self._log.exception("exchange %d: too large for the sum, so nothing is put into it", turn.exchange)
            zeros = {key: np.zeros_like(array) for key, array in summands[TENSORS].arrays.items()}
            summands[TENSORS] = Summands(zeros, {})
            sealed = self._sealer.seal(turn.instruction, turn.accepted, summands, received)
        return replace(sealed, spent=update.spent)

    def _sums(self, update: Update) -> dict[str, TaskSums]:
        """The metric sums of a held answer that is to be masked, by task."""
        if self._sealer is None:
            return {}
        more, tasks, groups = self._study.evaluate.metrics, self._study.tasks_by_name, names_of(self._study)
        return {
            name: sums_from(tasks[groups[name]], arrays)
            if name in groups
            else sums_of_arrays(more, tasks[name], arrays)
            for name, arrays in update.metrics.items()
        }

    def _is_last(self, turn: Turn) -> bool:
        return turn.exchange == last_exchange(self._study)

    @property
    def _shows_metrics(self) -> bool:
        return self._guard is None or self._guard.shows_metrics


def _code_of(error: BaseException) -> Code:
    match error:
        case MemoryError() | torch.OutOfMemoryError():
            return Code.OUT_OF_MEMORY
        case TooFewCases():
            return Code.TOO_FEW_CASES
        case Diverged() | OutOfRange():
            return Code.DIVERGED
        case OSError() if error.errno in DISK_FULL:
            return Code.DISK
        case FedgraftError():
            return Code.BAD_DATA
    return Code.FAILED


def _worth_a_trace(error: BaseException) -> bool:
    """Whether somebody at the site may want to see where it happened."""
    return not isinstance(error, MemoryError | torch.OutOfMemoryError | TooFewCases | Diverged | OutOfRange)
