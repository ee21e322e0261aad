"""A stage's work at a site: with noise and charged to the ledger first, or as policy lets it out without."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

from fedgraft.client.privacy.dp.dp_statistics import noised_columns, noised_exits, noised_sums
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.guard.survival_counts import coarse, demand_figures
from fedgraft.client.privacy.ledger.reply_store import Replay
from fedgraft.client.runtime.visit.admission import Turn
from fedgraft.client.runtime.visit.workplace import Workplace
from fedgraft.client.training.columns.harmonise import harmonise
from fedgraft.client.training.losses.base import RoundContext, VisitContext
from fedgraft.client.training.losses.machine import LocalMachine
from fedgraft.client.training.microbatching import Microbatching
from fedgraft.client.training.model.bound import after, bound, starts
from fedgraft.client.training.model.errors import Diverged
from fedgraft.client.training.statistics import CaseSource, site_sums
from fedgraft.client.training.survival import survival_sums
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.survival import EXITS
from fedgraft.common.compression.changes import Residual, compressed_keys, written
from fedgraft.common.compression.codecs import CompressionError
from fedgraft.common.protocol.instructions import TRUNK, Arrays, Code
from fedgraft.common.protocol.packed_symmetric import packed
from fedgraft.common.protocol.routing import KINDS, privacy_request, retains_statistics
from fedgraft.common.protocol.states import States
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import Gradient, Harmonise, Recalibrate, Stage, Statistics
from fedgraft.common.study.stages.losses import Requirement, requirements, wants_all_cases
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.stages.training import Private


@dataclass(frozen=True)
class WorkResult:
    """What a visit did: tensors for the coordinator, the site's own entries afterwards, training figures."""

    tensors: Arrays
    own: Arrays
    figures: dict[str, float]


class Worker:
    """Does the work of one site in one study."""

    def __init__(self, place: Workplace, log: logging.Logger) -> None:
        self._place = place
        self._log = log
        self._microbatching = Microbatching(place.local_model, log)
        self._labelled = place.labelled()

    @property
    def is_labelled(self) -> bool:
        """Whether there are training cases with a label."""
        return self._labelled[TRUNK] > 0

    def work(self, turn: Turn, guard: PrivacyGuard, local_state: Arrays, worked: frozenset[int]) -> WorkResult:
        """The work of this turn's stage; `worked` are the stages before, as they really happened. Raises Refused."""
        self._place.load(turn.stage, local_state)
        context = self._context(turn, local_state)
        if privacy_request(turn.stage) is not None:
            self._refuse_bare_entries(turn, worked - {turn.step.stage})
            result = self._with_noise(turn, guard, context)
        else:
            result = self._without_noise(turn.stage, guard, context)
        return self._compressed(turn.stage, result, local_state)

    def weights(self, stage: Stage, guard: PrivacyGuard) -> dict[str, float]:
        """What the site's entries of this stage count in a mean: its cases, as far as policy lets them out."""
        if not isinstance(stage.local, Gradient):
            return {}
        counts, losses = dict(self._labelled), stage.local.losses
        if wants_all_cases(losses):
            counts[TRUNK] = float(len(self._place.loader.splits["train"]))
        if Requirement.SOURCE in requirements(losses) or self._place.study.teacher_of(stage) is not None:
            counts = dict.fromkeys(counts, counts[TRUNK])  # what they say has taught the heads as well
        return {name: float(guard.public(int(count))) for name, count in counts.items()}

    def _refuse_bare_entries(self, turn: Turn, worked: frozenset[int]) -> None:
        """What the plan's check promises of private work, once more of what really happened.

        Own entries that were computed without noise would carry one patient into the gradients of all others.
        """
        if bare := self._place.bare(worked, turn.stage):
            raise Refused(Code.POLICY, f"own entries without noise: {', '.join(sorted(bare)[:3])}, ...")

    def _without_noise(self, stage: Stage, guard: PrivacyGuard, context: RoundContext) -> WorkResult:
        place, local, routing = self._place, stage.local, self._place.routing(stage)
        if routing.plain:
            guard.allow_plain(routing.roles, kept=retains_statistics(stage))
        if isinstance(local, Statistics):
            demand_figures(guard, place.study, stage)
            cases = CaseSource(place.loader, place.through_backbone, place.cohort.patients)
            sums = site_sums(stage, place.study, place.local_model, cases, States(place.received.came))
            if EXITS in sums and guard.metrics == "suppressed":
                guard.admit_survival(stage, place.cohort.patients, sums[EXITS])
                sums[EXITS] = coarse(sums[EXITS])
            examples = {"examples": float(len(place.loader.labelled(local.split)))}
            return WorkResult(packed(sums, KINDS[local.precision]), {}, _shown(examples, guard))
        begin = partial(place.local_model.begin, {**place.used, **self._starts(stage, context)}, routing.changed)
        if isinstance(local, Recalibrate):
            begin()
            figures = self._microbatching.recalibrate(place.loader, local)
        elif isinstance(local, Harmonise):
            begin()
            figures = self._harmonised()
        else:
            cases_ = place.training_cases(stage, local)
            figures = self._microbatching.train(cases_, local, routing.changed, context, begin)
        return self._left(stage, context, _shown(figures, guard))

    def _harmonised(self) -> dict[str, float]:
        """Find the site's own effects; columns that are left as they are stand in the site's log alone."""
        figures, untold = harmonise(self._place.local_model, self._place.loader)
        given = self._place.study.input
        if untold and isinstance(given, TableInput):
            names = list(given.harmonised)
            self._log.warning(
                "not harmonised, for lack of values that differ here, or of other sites that have any: %s",
                ", ".join(names[at] for at in untold),
            )
        return figures

    def _left(self, stage: Stage, context: RoundContext, figures: dict[str, float]) -> WorkResult:
        """What training leaves behind: entries that are sent or stay, and what the stage's methods remember or send."""
        place, routing = self._place, self._place.routing(stage)
        shared, mine = place.local_model.read(routing.sent), place.local_model.read(routing.stays)
        if methods := context.visit_context.methods:
            remembered = after(methods, self._machine(stage), shared | mine)
            shared, mine = {**shared, **remembered.sums}, {**mine, **remembered.own}
        return WorkResult(shared, mine, figures)

    def _compressed(self, stage: Stage, result: WorkResult, local_state: Arrays) -> WorkResult:
        """The result with changes of entries rounded as the stage says, and what that leaves out among what stays."""
        place = self._place
        keys = compressed_keys(stage, place.local_model.tags, place.local_model.forms)
        if not keys:
            return result
        before = States(local_state).get(stage.name, Residual)
        try:
            tensors, residual = written(stage, keys, result.tensors, place.received.entries, before)
        except CompressionError:
            raise Diverged from None
        kept = States()
        kept.put(stage.name, residual)
        return replace(result, tensors=tensors, own={**result.own, **kept.arrays()})

    def _starts(self, stage: Stage, context: RoundContext) -> Arrays:
        """Entries that the stage's methods begin the visit with."""
        methods = context.visit_context.methods
        return starts(methods, self._machine(stage)) if methods else {}

    def _machine(self, stage: Stage) -> LocalMachine:
        """The model and the training cases, for the stage's methods."""
        assert isinstance(stage.local, Gradient)
        return LocalMachine(self._place.local_model, self._place.training_cases(stage, stage.local))

    def _with_noise(self, turn: Turn, guard: PrivacyGuard, context: RoundContext) -> WorkResult:
        """Charge, then work with noise, then keep the reply; a round that was answered gets the same answer."""
        place, stage = self._place, turn.stage
        model = place.local_model.digests.of(place.received.entries)
        try:
            cases = len(place.loader.labelled("train"))
            private = guard.charge(stage, turn.exchange, place.routing(stage).roles, model, cases)
        except Replay as replay:
            return WorkResult(replay.shared, replay.own, {})
        if isinstance(private, PrivateSums):
            assert isinstance(stage.local, Statistics)
            if stage.local.survival is not None:
                counts = survival_sums(stage.local.survival, place.study, place.loader, place.cohort.patients)
                sums = noised_exits(counts[EXITS], private)
            elif isinstance(place.study.input, TableInput) and stage.local.of == "columns":
                sums = noised_columns(place.study.input, place.loader, place.cohort.patients, private)
            else:
                loader = place.through_backbone("train")
                sums = noised_sums(place.local_model, loader, place.cohort.patients, private)
            tensors = packed(sums, KINDS[stage.local.precision])
            result = WorkResult(tensors, {}, {"noise_multiplier": private.noise_multiplier or 0.0})
        else:
            result = self._trained(stage, private, context)
        guard.keep(turn.exchange, result.tensors, result.own)
        return result

    def _trained(self, stage: Stage, private: Private, context: RoundContext) -> WorkResult:
        from fedgraft.client.privacy.dp.dpsgd import train_private  # slow to import, and only this needs it

        assert isinstance(stage.local, Gradient)
        place, routing = self._place, self._place.routing(stage)
        spec = stage.local.model_copy(update={"private": private})
        place.local_model.touched(routing.changed)
        cases = place.training_cases(stage, spec)
        patients = place.cohort.patients
        figures = train_private(place.local_model, cases, patients, spec, routing.changed, context)
        return self._left(stage, context, figures)

    def _context(self, turn: Turn, local_state: Arrays) -> RoundContext:
        place, step = self._place, turn.step
        seed = derive(place.study.seed, place.cohort.name, turn.stage.name, step.round)
        received, came = place.received.entries, States(place.received.came)
        on = place.local_model.ground(turn.stage)
        methods = bound(on, step.round, received, (States(local_state), came), seed)
        visit = VisitContext(received, came, methods, place.source)
        return RoundContext(seed, step.round, turn.stage.rounds, visit)


def _shown(figures: dict[str, float], guard: PrivacyGuard) -> dict[str, float]:
    """Losses and counts of training, which tell of the patients as metrics do."""
    return figures if guard.shows_metrics else {}
