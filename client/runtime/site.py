"""A hospital's side of a study: cohort, device and the entries it keeps. `visit` answers one instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.targets import known
from fedgraft.client.privacy.dp.dp_statistics import noised_columns, noised_sums
from fedgraft.client.privacy.dp.units import units_of
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard, Refused
from fedgraft.client.privacy.ledger.reply_store import Replay
from fedgraft.client.privacy.masking.masked_upload import Accepted, Sealer
from fedgraft.client.privacy.release.metric_release import release
from fedgraft.client.runtime.greeting import counts_of
from fedgraft.client.runtime.local_state import LocalState
from fedgraft.client.runtime.log import site_log
from fedgraft.client.runtime.received_state import ReceivedState
from fedgraft.client.training.losses.base import RoundContext, VisitContext
from fedgraft.client.training.losses.control_variate import next_control_variate, site_control_variate
from fedgraft.client.training.microbatching import Microbatching
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.evaluate import Predictions, predictions, summed
from fedgraft.client.training.model.features import Features
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import CaseSource, site_sums
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.base.files import DISK_FULL
from fedgraft.common.base.seeds import derive
from fedgraft.common.metrics.task_metrics import TaskSums
from fedgraft.common.protocol.auxiliary import requirements_of, requires_source
from fedgraft.common.protocol.instructions import (
    TRUNK,
    Answer,
    Arrays,
    Code,
    Greeting,
    Instruction,
    Refusal,
    Split,
    Update,
)
from fedgraft.common.protocol.packed_symmetric import packed
from fedgraft.common.protocol.routing import (
    KINDS,
    Routing,
    own,
    privacy_request,
    retains_statistics,
)
from fedgraft.common.secure_aggregation.masking import OutOfRange
from fedgraft.common.secure_aggregation.summing import (
    METRICS,
    TENSORS,
    Summands,
    metric_summands,
    tensor_summands,
)
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.losses import Requirement, looks_further, wants_all_cases
from fedgraft.common.study.plan import (
    Gradient,
    Recalibrate,
    Role,
    Stage,
    Statistics,
)
from fedgraft.common.study.private_sums import PrivateSums
from fedgraft.common.study.study import Study
from fedgraft.common.study.training import Private


@dataclass(frozen=True)
class WorkResult:
    """What a visit did: tensors for the coordinator, the site's own entries afterwards, training figures."""

    tensors: Arrays
    own: Arrays
    figures: dict[str, float]


class Site:
    """One hospital in one study. The workbench may be shared with other sites of the same process.

    `guard` stands for the site's policy and ledger. Without one the site is an observer: its data are public, it
    evaluates models and is never asked to train. `sealer` masks all answers to a study with secure aggregation.
    """

    def __init__(
        self,
        study: Study,
        cohort: Cohort,
        local_model: LocalModel,
        folder: Path,
        guard: PrivacyGuard | None,
        sealer: Sealer | None = None,
    ) -> None:
        self.name = cohort.name
        self._study = study
        self._guard = guard
        self._sealer = sealer
        self._local_model = local_model
        self._routings = {stage.name: Routing.of(stage, local_model.tags) for stage in study.plan}
        self._cohort = cohort
        self._feed = Loader(cohort, study.input, local_model.device)
        self._source = Loader(cohort.source, study.input, local_model.device) if cohort.source is not None else None
        keep = guard is None or guard.keeps_features
        self._features = Features(self._feed, folder, study.digest, keep=keep)
        self._used: dict[str, np.ndarray] = {}
        self._local_state = LocalState(folder / "local_state" / study.digest[:16])
        self._log = site_log(folder)
        self._microbatching = Microbatching(local_model, self._log)
        self._received_state = ReceivedState(local_model)
        indices = self._feed.labelled("train")
        labelled = {task.name: known(self._feed.targets(task.name, indices)) for task in study.tasks}
        self._labelled = {task: float(cases.sum()) for task, cases in labelled.items()} | {TRUNK: float(len(indices))}

    def greet(self) -> Greeting:
        """Who this site is and what it has, as counts. Raises Refused if its policy rules the study out.

        In a study with secure aggregation, where weights are hidden, counts are too.
        """
        if self._guard is not None:
            self._guard.admit(self._local_model.tags)
            if self._source is None and not self._guard.is_source and requires_source(self._study):
                raise Refused(Code.NO_SOURCE, "the study learns from a source at the site, whose file names none")
        labelled = self._labelled[TRUNK] > 0
        if self._sealer is not None:
            nonce = self._sealer.greet()
            return Greeting(self.name, {}, {}, labelled=labelled, evaluates=self._shows_metrics, nonce=nonce)
        counts = counts_of(self._study, self._cohort, self._guard.public if self._guard else int)
        source = self._guard is not None and self._guard.is_source
        shows = self._shows_metrics
        return replace(counts, observer=self._guard is None, labelled=labelled, evaluates=shows, source=source)

    def visit(self, instruction: Instruction) -> Answer:
        """Evaluate what came, do the stage's work, and answer. Never raises: trouble is a constant code."""
        try:
            return self._visit(instruction)
        except Refused as refused:
            code = refused.code
            self._log.warning("exchange %d: %s", instruction.exchange, refused.why or code)
        except (MemoryError, torch.OutOfMemoryError):
            code = Code.OUT_OF_MEMORY
        except TooFewCases:
            code = Code.TOO_FEW_CASES
        except (Diverged, OutOfRange):
            code = Code.DIVERGED
        except OSError as error:
            code = Code.DISK if error.errno in DISK_FULL else Code.FAILED
            self._log.exception("exchange %d failed", instruction.exchange)
        except FedgraftError:
            code = Code.BAD_DATA
            self._log.exception("exchange %d failed", instruction.exchange)
        except Exception:  # the wall between a hospital and the network: no text may pass it
            code = Code.FAILED
            self._log.exception("exchange %d failed", instruction.exchange)
        self._log.warning("exchange %d: refused, %s", instruction.exchange, code)
        # What the model holds is not known after a failure.
        self._local_model.touched(self._local_model.tags)
        return Refusal(instruction.exchange, code)

    def grounds(self, instruction: Instruction) -> str:
        """Why the site's policy lets out what it answers to `order`, for the egress log."""
        if self._guard is None:
            return "public data of an observer"
        return self._guard.grounds(
            self._study.plan[instruction.stage] if instruction.work else None, self._local_model.tags
        )

    @property
    def _shows_metrics(self) -> bool:
        return self._guard is None or self._guard.shows_metrics

    def _visit(self, instruction: Instruction) -> Answer:
        if instruction.study != self._study.digest or instruction.stage >= len(self._study.plan):
            raise Refused(Code.UNKNOWN_STUDY)
        if self._guard is not None:
            self._guard.demand_secure_aggregation()
        accepted = self._sealer.accept(instruction, self._study.plan[instruction.stage]) if self._sealer else None
        self._received_state.take(instruction, self._study.plan[instruction.stage])
        before = self._local_state.before(instruction.exchange)
        asked = instruction.evaluate is not None and self._shows_metrics
        metrics = summed(self._local_model, self._predict(instruction, before)) if asked else {}
        update = self._worked(instruction, before) if instruction.work else self._ended(instruction, before)
        if self._sealer is not None and accepted is not None:
            summands = self._summands(instruction, accepted, update, metrics)
            sealed = self._sealer.seal(
                instruction, accepted, summands, self._local_model.digests.of(self._received_state.entries)
            )
            return replace(sealed, spent=update.spent)
        if not self._shows_metrics:
            return update
        return replace(update, metrics={task: sums.arrays() for task, sums in metrics.items()})

    def _ended(self, instruction: Instruction, before: Arrays) -> Update:
        """The answer to an instruction without work; to the last one, with what policy lets out once in a study."""
        update = Update(instruction.exchange, {}, {}, {}, {})
        if instruction.exchange != 1 + sum(stage.rounds for stage in self._study.plan):
            return update
        if self._guard is not None and self._sealer is None and instruction.evaluate == "test":
            update = replace(update, metrics=self._show(instruction, before, self._guard), spent=self._guard.spend())
        self._features.forget()
        return update

    def _worked(self, instruction: Instruction, before: Arrays) -> Update:
        if self._guard is None:
            raise Refused(Code.POLICY)
        stage = self._study.plan[instruction.stage]
        self._load(stage, before)
        work = self._work(stage, instruction, self._guard, before)
        if work.own:
            self._local_state.save(instruction.exchange, {**before, **work.own})
        weights = self._weights(stage, self._guard)
        return Update(instruction.exchange, work.tensors, weights, work.figures, {}, self._guard.spend())

    def _summands(
        self, instruction: Instruction, accepted: Accepted, update: Update, metrics: Mapping[str, TaskSums]
    ) -> dict[str, Summands]:
        """What goes into the sums of a study with secure aggregation."""
        summands = {}
        if TENSORS in accepted.parts:
            summands[TENSORS] = tensor_summands(update, self._study.plan[instruction.stage], self._local_model.tags)
        if METRICS in accepted.parts and metrics:
            summands[METRICS] = metric_summands(metrics, update.train)
        return summands

    def _evaluated_stage(self, instruction: Instruction) -> Stage | None:
        """The stage whose result came with this order; None before the first."""
        if instruction.round > 1 or not instruction.work:
            return self._study.plan[instruction.stage]
        return self._study.plan[instruction.stage - 1] if instruction.stage else None

    def _load(self, stage: Stage | None, local_state: Arrays) -> None:
        """Put the model together: what the coordinator sent, and in its place what this site keeps for itself."""
        tags = self._local_model.tags
        mine = {k: array for k, array in local_state.items() if stage is not None and k in tags and own(stage, tags, k)}
        self._used = self._received_state.entries | mine
        self._local_model.load(self._used)

    def _seen(self, split: Split) -> Loader:
        """The cases through the backbone that is loaded."""
        tags = self._local_model.tags
        backbone = {key: array for key, array in self._used.items() if tags[key].role is not Role.HEAD}
        return self._features.loader(self._local_model, self._local_model.digests.of(backbone), split)

    def _show(self, instruction: Instruction, before: Arrays, guard: PrivacyGuard) -> dict[str, Arrays]:
        """Counts of the test cases as policy lets them out; nothing, if it does not."""
        labelled = self._feed.labelled("test")
        cases = (labelled, units_of(labelled, self._cohort.patients, guard.unit))
        model = self._local_model.digests.of(self._received_state.entries)
        try:
            return release(
                guard,
                instruction.exchange,
                model,
                lambda: self._predict(instruction, before),
                cases,
                self._study.tasks_by_name,
            )
        except Refused as refused:
            self._log.warning("no metrics: %s", refused.why or refused.code)
            return {}

    def _predict(self, instruction: Instruction, before: Arrays) -> Predictions:
        """What the model that came says. Where the backbone is frozen, before or now, only heads run."""
        assert instruction.evaluate is not None
        self._load(self._evaluated_stage(instruction), before)
        near = (self._study.plan[instruction.stage], self._evaluated_stage(instruction))
        frozen = any(stage is not None and self._routings[stage.name].frozen for stage in near)
        loader = self._seen(instruction.evaluate) if frozen and not self._local_model.model.decodes else self._feed
        return predictions(self._local_model, loader, instruction.evaluate)

    def _work(self, stage: Stage, instruction: Instruction, guard: PrivacyGuard, before: Arrays) -> WorkResult:
        local, tags = stage.local, self._local_model.tags
        round_context = self._round_context(stage, instruction, before)
        if privacy_request(stage) is not None:
            return self._private_work(stage, instruction, guard, round_context)
        routing = self._routings[stage.name]
        if routing.plain:
            guard.allow_plain(routing.roles, kept=retains_statistics(stage))
        if isinstance(local, Statistics):
            cases = CaseSource(self._feed, self._seen)
            sums = site_sums(local, self._study, self._local_model, cases, self._received_state.auxiliary)
            return WorkResult(
                packed(sums, KINDS[local.precision]),
                {},
                self._figures({"examples": len(self._feed.labelled(local.split))}),
            )
        begin = partial(self._local_model.begin, self._used, routing.changed)
        if isinstance(local, Recalibrate):
            begin()
            figures = self._microbatching.recalibrate(self._feed, local)
        else:
            figures = self._microbatching.train(self._cases(stage, local), local, routing.changed, round_context, begin)
        shared, mine = self._local_model.read(routing.sent), self._local_model.read(routing.stays)
        if Requirement.CONTROL_VARIATE in requirements_of(stage):
            mine |= next_control_variate(stage, tags, round_context, shared)
        return WorkResult(shared, mine, self._figures(figures))

    def _private_work(
        self, stage: Stage, instruction: Instruction, guard: PrivacyGuard, round_context: RoundContext
    ) -> WorkResult:
        """Charge, then work with noise, then keep the reply; a round that was answered gets the same answer."""
        routing = self._routings[stage.name]
        try:
            model = self._local_model.digests.of(self._received_state.entries)
            private = guard.charge(stage, instruction.exchange, routing.roles, model)
        except Replay as replay:
            return WorkResult(replay.shared, replay.own, {})
        if isinstance(private, PrivateSums):
            assert isinstance(stage.local, Statistics)
            patients, columns = self._cohort.patients, self._study.input
            if stage.local.of == "columns" and isinstance(columns, TableInput):
                sums = noised_columns(columns, self._feed, patients, private)
            else:
                sums = noised_sums(self._local_model, self._seen("train"), patients, private)
            work = WorkResult(
                packed(sums, KINDS[stage.local.precision]), {}, {"noise_multiplier": private.noise_multiplier or 0.0}
            )
        else:
            work = self._train_privately(stage, private, round_context)
        guard.keep(instruction.exchange, work.tensors, work.own)
        return work

    def _train_privately(self, stage: Stage, private: Private, round_context: RoundContext) -> WorkResult:
        from fedgraft.client.privacy.dp.dpsgd import train_private  # slow to import, and only private training needs it

        assert isinstance(stage.local, Gradient)
        spec, routing = stage.local.model_copy(update={"private": private}), self._routings[stage.name]
        self._local_model.touched(routing.changed)
        cases, patients = self._cases(stage, spec), self._cohort.patients
        figures = train_private(self._local_model, cases, patients, spec, routing.changed, round_context)
        return WorkResult(self._local_model.read(routing.sent), self._local_model.read(routing.stays), figures)

    def _cases(self, stage: Stage, local: Gradient) -> Loader:
        """The training cases: as features where the backbone is frozen, unless images are to be changed at random."""
        plain = local.augment is None and local.rollback is None and not looks_further(local.losses)
        frozen = self._routings[stage.name].frozen and plain and not self._local_model.model.decodes
        return self._seen("train") if frozen else self._feed

    def _round_context(self, stage: Stage, instruction: Instruction, before: Arrays) -> RoundContext:
        seed = derive(self._study.seed, self.name, stage.name, instruction.round)
        visit_context = VisitContext(
            self._received_state.entries,
            self._received_state.auxiliary,
            site_control_variate(before, instruction.round),
            self._source,
        )
        return RoundContext(seed, instruction.round, stage.rounds, visit_context)

    def _figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Losses and counts of training, which tell of the patients as metrics do."""
        return figures if self._guard is not None and self._guard.shows_metrics else {}

    def _weights(self, stage: Stage, guard: PrivacyGuard) -> dict[str, float]:
        if not isinstance(stage.local, Gradient):
            return {}
        counts, losses = dict(self._labelled), stage.local.losses
        if wants_all_cases(losses):
            counts[TRUNK] = float(len(self._feed.splits["train"]))
        if {Requirement.SOURCE, Requirement.TEACHER} & requirements_of(
            stage
        ):  # what they say has taught the heads as well
            counts = dict.fromkeys(counts, counts[TRUNK])
        return {name: float(guard.public(int(count))) for name, count in counts.items()}
