"""A hospital's side of a study: cohort, device and the entries it keeps. `visit` answers one order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.targets import known
from fedgraft.client.privacy.dp.dp_statistics import noised_sums
from fedgraft.client.privacy.dp.units import units_of
from fedgraft.client.privacy.guard.privacy_guard import Guard, Refused
from fedgraft.client.privacy.ledger.reply_store import Replay
from fedgraft.client.privacy.masking.masked_upload import Accepted, Sealer
from fedgraft.client.privacy.release.metric_release import release
from fedgraft.client.runtime.greeting import counts_of
from fedgraft.client.runtime.local_state import Kept
from fedgraft.client.runtime.log import site_log
from fedgraft.client.runtime.received_state import Inbox
from fedgraft.client.training.losses.base import Around, Moment
from fedgraft.client.training.losses.control_variate import next_control, own_control
from fedgraft.client.training.microbatching import Room
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.evaluate import Predictions, predictions, summed
from fedgraft.client.training.model.features import Features
from fedgraft.client.training.model.loader import Feed
from fedgraft.client.training.model.local_model import Workbench
from fedgraft.client.training.statistics import Cases, site_sums
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.base.files import DISK_FULL
from fedgraft.common.base.seeds import derive
from fedgraft.common.metrics.task_metrics import TaskSums
from fedgraft.common.protocol.auxiliary import needs_of, needs_source
from fedgraft.common.protocol.instructions import (
    TRUNK,
    Answer,
    Arrays,
    Code,
    Greeting,
    Order,
    Refusal,
    Split,
    Update,
)
from fedgraft.common.protocol.packed_symmetric import folded
from fedgraft.common.protocol.routing import (
    KINDS,
    Route,
    keeps_sums,
    own,
    privacy_asked,
)
from fedgraft.common.secure_aggregation.masking import OutOfRange
from fedgraft.common.secure_aggregation.summing import (
    METRICS,
    TENSORS,
    Terms,
    metric_terms,
    tensor_terms,
)
from fedgraft.common.study.losses import Need, looks_further, wants_all_cases
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
class Work:
    """What a visit did: tensors for the coordinator, the site's own entries afterwards, training figures."""

    tensors: Arrays
    own: Arrays
    figures: dict[str, float]


class Site:
    """One hospital in one study. The workbench may be shared with other sites of the same process.

    `guard` stands for the site's policy and ledger. Without one the site is an observer: its data are public, it
    evaluates models and is never asked to train. `sealer` masks all answers to a masked study.
    """

    def __init__(
        self,
        study: Study,
        cohort: Cohort,
        bench: Workbench,
        folder: Path,
        guard: Guard | None,
        sealer: Sealer | None = None,
    ) -> None:
        self.name = cohort.name
        self._study = study
        self._guard = guard
        self._sealer = sealer
        self._bench = bench
        self._routes = {stage.name: Route.of(stage, bench.tags) for stage in study.plan}
        self._cohort = cohort
        self._feed = Feed(cohort, study.input, bench.device)
        self._source = Feed(cohort.source, study.input, bench.device) if cohort.source is not None else None
        keep = guard is None or guard.keeps_features
        self._features = Features(self._feed, folder, study.digest, keep=keep)
        self._used: dict[str, np.ndarray] = {}
        self._kept = Kept(folder / "kept" / study.digest[:16])
        self._log = site_log(folder)
        self._room = Room(bench, self._log)
        self._inbox = Inbox(bench)
        indices = self._feed.labelled("train")
        labelled = {task.name: known(self._feed.targets(task.name, indices)) for task in study.tasks}
        self._labelled = {task: float(cases.sum()) for task, cases in labelled.items()} | {TRUNK: float(len(indices))}

    def greet(self) -> Greeting:
        """Who this site is and what it has, as counts. Raises Refused if its policy rules the study out.

        In a masked study, where weights are hidden, counts are too.
        """
        if self._guard is not None:
            self._guard.admit(self._bench.tags)
            if self._source is None and not self._guard.is_source and needs_source(self._study):
                raise Refused(Code.NO_SOURCE, "the study learns from a source at the site, whose file names none")
        labelled = self._labelled[TRUNK] > 0
        if self._sealer is not None:
            nonce = self._sealer.greet()
            return Greeting(self.name, {}, {}, labelled=labelled, evaluates=self._shows_metrics, nonce=nonce)
        counts = counts_of(self._study, self._cohort, self._guard.public if self._guard else int)
        source = self._guard is not None and self._guard.is_source
        shows = self._shows_metrics
        return replace(counts, observer=self._guard is None, labelled=labelled, evaluates=shows, source=source)

    def visit(self, order: Order) -> Answer:
        """Evaluate what the order brings, do its stage's work, and answer. Never raises: trouble is a constant code."""
        try:
            return self._visit(order)
        except Refused as refused:
            code = refused.code
            self._log.warning("exchange %d: %s", order.exchange, refused.why or code)
        except (MemoryError, torch.OutOfMemoryError):
            code = Code.OUT_OF_MEMORY
        except TooFewCases:
            code = Code.TOO_FEW_CASES
        except (Diverged, OutOfRange):
            code = Code.DIVERGED
        except OSError as error:
            code = Code.DISK if error.errno in DISK_FULL else Code.FAILED
            self._log.exception("exchange %d failed", order.exchange)
        except FedgraftError:
            code = Code.BAD_DATA
            self._log.exception("exchange %d failed", order.exchange)
        except Exception:  # the wall between a hospital and the network: no text may pass it
            code = Code.FAILED
            self._log.exception("exchange %d failed", order.exchange)
        self._log.warning("exchange %d: refused, %s", order.exchange, code)
        # What the model holds is not known after a failure.
        self._bench.touched(self._bench.tags)
        return Refusal(order.exchange, code)

    def grounds(self, order: Order) -> str:
        """Why the site's policy lets out what it answers to `order`, for the egress log."""
        if self._guard is None:
            return "public data of an observer"
        return self._guard.grounds(self._study.plan[order.stage] if order.work else None, self._bench.tags)

    @property
    def _shows_metrics(self) -> bool:
        return self._guard is None or self._guard.shows_metrics

    def _visit(self, order: Order) -> Answer:
        if order.study != self._study.digest or order.stage >= len(self._study.plan):
            raise Refused(Code.UNKNOWN_STUDY)
        if self._guard is not None:
            self._guard.demand_masks()
        accepted = self._sealer.accept(order, self._study.plan[order.stage]) if self._sealer else None
        self._inbox.take(order, self._study.plan[order.stage])
        before = self._kept.before(order.exchange)
        asked = order.evaluate is not None and self._shows_metrics
        metrics = summed(self._bench, self._predict(order, before)) if asked else {}
        update = self._worked(order, before) if order.work else self._ended(order, before)
        if self._sealer is not None and accepted is not None:
            terms = self._terms(order, accepted, update, metrics)
            sealed = self._sealer.seal(order, accepted, terms, self._bench.digests.of(self._inbox.entries))
            return replace(sealed, spent=update.spent)
        if not self._shows_metrics:
            return update
        return replace(update, metrics={task: sums.arrays() for task, sums in metrics.items()})

    def _ended(self, order: Order, before: Arrays) -> Update:
        """The answer to an order without work; to the last one, with what policy lets out once in a study."""
        update = Update(order.exchange, {}, {}, {}, {})
        if order.exchange != 1 + sum(stage.rounds for stage in self._study.plan):
            return update
        if self._guard is not None and self._sealer is None and order.evaluate == "test":
            update = replace(update, metrics=self._show(order, before, self._guard), spent=self._guard.spend())
        self._features.forget()
        return update

    def _worked(self, order: Order, before: Arrays) -> Update:
        if self._guard is None:
            raise Refused(Code.POLICY)
        stage = self._study.plan[order.stage]
        self._load(stage, before)
        work = self._work(stage, order, self._guard, before)
        if work.own:
            self._kept.save(order.exchange, {**before, **work.own})
        weights = self._weights(stage, self._guard)
        return Update(order.exchange, work.tensors, weights, work.figures, {}, self._guard.spend())

    def _terms(
        self, order: Order, accepted: Accepted, update: Update, metrics: Mapping[str, TaskSums]
    ) -> dict[str, Terms]:
        """What goes into the sums of a masked study."""
        terms = {}
        if TENSORS in accepted.parts:
            terms[TENSORS] = tensor_terms(update, self._study.plan[order.stage], self._bench.tags)
        if METRICS in accepted.parts and metrics:
            terms[METRICS] = metric_terms(metrics, update.train)
        return terms

    def _evaluated_stage(self, order: Order) -> Stage | None:
        """The stage whose result came with this order; None before the first."""
        if order.round > 1 or not order.work:
            return self._study.plan[order.stage]
        return self._study.plan[order.stage - 1] if order.stage else None

    def _load(self, stage: Stage | None, kept: Arrays) -> None:
        """Put the model together: what the coordinator sent, and in its place what this site keeps for itself."""
        tags = self._bench.tags
        mine = {k: array for k, array in kept.items() if stage is not None and k in tags and own(stage, tags, k)}
        self._used = self._inbox.entries | mine
        self._bench.load(self._used)

    def _seen(self, split: Split) -> Feed:
        """The cases through the backbone that is loaded."""
        tags = self._bench.tags
        backbone = {key: array for key, array in self._used.items() if tags[key].role is not Role.HEAD}
        return self._features.feed(self._bench, self._bench.digests.of(backbone), split)

    def _show(self, order: Order, before: Arrays, guard: Guard) -> dict[str, Arrays]:
        """Counts of the test cases as policy lets them out; nothing, if it does not."""
        labelled = self._feed.labelled("test")
        cases = (labelled, units_of(labelled, self._cohort.patients, guard.unit))
        model = self._bench.digests.of(self._inbox.entries)
        try:
            return release(guard, order.exchange, model, lambda: self._predict(order, before), cases, self._study.asked)
        except Refused as refused:
            self._log.warning("no metrics: %s", refused.why or refused.code)
            return {}

    def _predict(self, order: Order, before: Arrays) -> Predictions:
        """What the model that came with the order says. Where the backbone rests, before or now, only heads run."""
        assert order.evaluate is not None
        self._load(self._evaluated_stage(order), before)
        near = (self._study.plan[order.stage], self._evaluated_stage(order))
        resting = any(stage is not None and self._routes[stage.name].rests for stage in near)
        feed = self._seen(order.evaluate) if resting and not self._bench.model.decodes else self._feed
        return predictions(self._bench, feed, order.evaluate)

    def _work(self, stage: Stage, order: Order, guard: Guard, before: Arrays) -> Work:
        local, tags = stage.local, self._bench.tags
        moment = self._moment(stage, order, before)
        if privacy_asked(stage) is not None:
            return self._private_work(stage, order, guard, moment)
        route = self._routes[stage.name]
        if route.plain:
            guard.allow_plain(route.roles, kept=keeps_sums(stage))
        if isinstance(local, Statistics):
            cases = Cases(self._feed, self._seen)
            sums = site_sums(local, self._study, self._bench, cases, self._inbox.aside)
            return Work(
                folded(sums, KINDS[local.precision]),
                {},
                self._figures({"examples": len(self._feed.labelled(local.split))}),
            )
        begin = partial(self._bench.begin, self._used, route.changed)
        if isinstance(local, Recalibrate):
            begin()
            figures = self._room.recalibrate(self._feed, local)
        else:
            figures = self._room.train(self._cases(stage, local), local, route.changed, moment, begin)
        shared, mine = self._bench.read(route.sent), self._bench.read(route.stays)
        if Need.CONTROL in needs_of(stage):
            mine |= next_control(stage, tags, moment, shared)
        return Work(shared, mine, self._figures(figures))

    def _private_work(self, stage: Stage, order: Order, guard: Guard, moment: Moment) -> Work:
        """Charge, then work with noise, then keep the reply; a round that was answered gets the same answer."""
        route = self._routes[stage.name]
        try:
            model = self._bench.digests.of(self._inbox.entries)
            private = guard.charge(stage, order.exchange, route.roles, model)
        except Replay as replay:
            return Work(replay.shared, replay.own, {})
        if isinstance(private, PrivateSums):
            assert isinstance(stage.local, Statistics)
            sums = noised_sums(self._bench, self._seen("train"), self._cohort.patients, private)
            work = Work(folded(sums, KINDS[stage.local.precision]), {}, {"sigma": private.sigma or 0.0})
        else:
            work = self._train_privately(stage, private, moment)
        guard.keep(order.exchange, work.tensors, work.own)
        return work

    def _train_privately(self, stage: Stage, private: Private, moment: Moment) -> Work:
        from fedgraft.client.privacy.dp.dpsgd import train_private  # slow to import, and only private training needs it

        assert isinstance(stage.local, Gradient)
        spec, route = stage.local.model_copy(update={"private": private}), self._routes[stage.name]
        self._bench.touched(route.changed)
        cases, patients = self._cases(stage, spec), self._cohort.patients
        figures = train_private(self._bench, cases, patients, spec, route.changed, moment)
        return Work(self._bench.read(route.sent), self._bench.read(route.stays), figures)

    def _cases(self, stage: Stage, local: Gradient) -> Feed:
        """The training cases: as features where the backbone rests, unless images are to be changed at random."""
        plain = local.augment is None and local.fallback is None and not looks_further(local.terms)
        frozen = self._routes[stage.name].rests and plain and not self._bench.model.decodes
        return self._seen("train") if frozen else self._feed

    def _moment(self, stage: Stage, order: Order, before: Arrays) -> Moment:
        seed = derive(self._study.seed, self.name, stage.name, order.round)
        around = Around(self._inbox.entries, self._inbox.aside, own_control(before, order.round), self._source)
        return Moment(seed, order.round, stage.rounds, around)

    def _figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Losses and counts of training, which tell of the patients as metrics do."""
        return figures if self._guard is not None and self._guard.shows_metrics else {}

    def _weights(self, stage: Stage, guard: Guard) -> dict[str, float]:
        if not isinstance(stage.local, Gradient):
            return {}
        counts, terms = dict(self._labelled), stage.local.terms
        if wants_all_cases(terms):
            counts[TRUNK] = float(len(self._feed.splits["train"]))
        if {Need.SOURCE, Need.TEACHER} & needs_of(stage):  # what they say has taught the heads as well
            counts = dict.fromkeys(counts, counts[TRUNK])
        return {name: float(guard.public(int(count))) for name, count in counts.items()}
