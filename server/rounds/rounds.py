"""The round loop: instruct, collect, validate, aggregate, save; then once more to evaluate, and the run is done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedgraft.common.base.errors import QuorumError
from fedgraft.common.closed_form.ood import ood_model
from fedgraft.common.methods.memory.carried import sent_shapes, up_shapes
from fedgraft.common.protocol.instructions import (
    Arrays,
    Code,
    Digests,
    Greeting,
    Hello,
    Instruction,
)
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.protocol.states import States
from fedgraft.common.study.inputs import Split
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.schedule import Step, schedule, split_at, stage_of
from fedgraft.common.study.study import Study
from fedgraft.server.aggregation.aggregator import Aggregator, HeadAggregator, aggregator_for
from fedgraft.server.aggregation.gathered import Gathered
from fedgraft.server.aggregation.memory import Memory
from fedgraft.server.fleet.fleet import Fleet, lacking
from fedgraft.server.rounds.exchange.attendance import asked_in, counts_absent
from fedgraft.server.rounds.exchange.collect import Collected, Collector, headline
from fedgraft.server.rounds.exchange.outages import Outages
from fedgraft.server.rounds.exchange.secure_aggregation import SecureCollector, WantedSums
from fedgraft.server.rounds.exchange.validation import Limits, greeting_fault
from fedgraft.server.rounds.outcome import RunOutcome, Totals
from fedgraft.server.rounds.scores import Points, Scores
from fedgraft.server.rounds.stopping import averaged, best, stopped, undecided
from fedgraft.server.runs.retained_statistics import RetainedStatistics, features_digest
from fedgraft.server.runs.run_folder import RunFolder


class Coordinator:
    """One run of a study over a fleet, from the first exchange or from a checkpoint."""

    def __init__(self, study: Study, fleet: Fleet, folder: RunFolder, state: Arrays, tags: Tags) -> None:
        self._study = study
        self._fleet = fleet
        self._folder = folder
        self._state: dict[str, np.ndarray] = dict(state)
        self._memory = Memory(study, tags, state)
        self._tags = tags
        self._totals = Totals()
        self._digests = Digests()
        self._held: dict[str, Arrays] = {}
        self._sent: Arrays = {}
        self._greetings: dict[str, Greeting] = {}
        self._absent: dict[str, Code] = {}
        self._others: dict[str, Code] = {}
        self._collector = Collector(study, fleet, self._greetings, folder.event)
        self._outages = Outages(fleet, folder.event)
        self._secure = SecureCollector(study, self._collector, self._greetings, self._outages)
        self._first = 0

    def run(self) -> RunOutcome:
        """Carry out what is left of the plan. QuorumError if too few sites answer in a round."""
        done = 0
        if (checkpoint := self._folder.load_checkpoint()) is not None:
            done, self._state, self._memory.states = checkpoint.exchange, checkpoint.state, States(checkpoint.memory)
            self._totals = Totals(**checkpoint.totals)
        self._greet()
        scores, rule = Scores(self._study, {}), self._study.evaluate.operating_point
        points: Points = {}
        for step in schedule(self._study):
            if step.exchange <= done or (step.work and self._study.plan[step.stage].name in self._totals.ended):
                continue
            self._first = self._first or step.exchange
            scores = self._exchange(step)
            if not step.work and rule is not None and split_at(self._study, step) == "val":
                points = scores.operating_points(rule)
            if step.work:
                memory = self._memory.states.arrays()
                self._folder.save_checkpoint(step.exchange, self._state, memory, vars(self._totals))
        late = frozenset(site for site in self._greetings if not self._fleet.expects(site))
        ood = ood_model(self._memory.states)
        ended = (self._state, self._greetings, self._absent, scores, self._totals)
        return RunOutcome(*ended, points, late, self._others, ood)

    def _greet(self) -> None:
        started = time.monotonic()
        self._outages.reunited(self._folder.greeted(), all_of_them=self._study.secure_aggregation)
        self._folder.event("greeting")
        self._welcome()
        self._spend("prepare", started)
        self._folder.event("greeted", sites=list(self._greetings), absent=self._absent)
        if not self._greetings:
            reasons = ", ".join(f"{site}: {code}" for site, code in self._absent.items()) or "nobody answered"
            raise QuorumError(f"No site can take part ({reasons}).", fix="See site.log in each site's folder.")
        wanting = [s.name for s in self._study.plan if s.where == "source" or s.joint_lambda is not None]
        if wanting and not self._sources():
            fix = "Start a site with public_source: true, or give the scenario one."
            raise QuorumError(f"Stage {wanting[0]!r} needs a site that holds the source, and none is there.", fix=fix)

    def _welcome(self) -> None:
        """Take in sites that are there and have not greeted yet: at the start, and those that come later."""
        for site, answer in self._fleet.greet(Hello(self._study.to_json())).items():
            code = greeting_fault(answer, self._study) if isinstance(answer, Greeting) else answer.code
            if code is not None:
                (self._absent if self._fleet.expects(site) else self._others)[site] = code
            elif isinstance(answer, Greeting):
                self._greetings[site] = answer
                self._absent.pop(site, None)
                self._others.pop(site, None)

    def _exchange(self, step: Step) -> Scores:
        started = time.monotonic()
        # A study with secure aggregation keeps the group that it began with: its masks were agreed on at the greeting.
        if step.exchange > self._first and not self._study.secure_aggregation:
            self._welcome()
        stage = stage_of(self._study, step)
        sites = self._asked(step, stage)
        self._folder.event(
            "exchange",
            exchange=step.exchange,
            stage=stage.name if step.work else "evaluate",
            sites=len(sites),
        )
        self._memory.states.begin(stage.name)
        self._sent = self._state | (self._memory.go_down(stage) if step.work else {})
        got, aggregator, gathered = self._counted(step, stage, sites)
        for site in (*got.aggregated, *got.observed):
            self._hold(site)
        scores = Scores(self._study, got.metrics, got.pooled)
        if step.work:
            self._take(step, stage, gathered, scores, len(got.aggregated) / len(sites))
            if isinstance(aggregator, HeadAggregator):
                self._retain_statistics(stage, aggregator, got)
        self._digests.keep_only(self._state | self._memory.sent)
        self._record(step, stage, sites, got, scores, started)
        return scores

    def _retain_statistics(self, stage: Stage, aggregator: HeadAggregator, got: Collected) -> None:
        got.ridge_penalties = aggregator.ridge_penalties
        if aggregator.kept:
            features = features_digest(self._state, self._tags)
            sites = dict(zip(sorted(got.aggregated), aggregator.kept, strict=True))
            RetainedStatistics(stage.name, features, sites).write(self._folder.path)

    def _take(self, step: Step, stage: Stage, gathered: Gathered, scores: Scores, share: float) -> None:
        """The state after a round: aggregated, averaged, or the best one of a stage that ends here."""
        states = self._memory.states
        if undecided(stage, scores):
            self._totals.undecided[stage.name] = self._totals.undecided.get(stage.name, 0) + 1
        if (number := stopped(stage, step.round, scores, self._state, states)) is not None:
            self._totals.ended[stage.name] = number
            self._state = self._state | best(stage, states)
            self._folder.event("stopped", stage=stage.name, round=step.round, best=number)
            return
        aggregated = gathered.result(self._state)
        ended = self._memory.learn(stage, step.round, self._state, aggregated, (gathered.sums, share))
        self._state = self._state | averaged(stage, step.round, ended, states)

    def _asked(self, step: Step, stage: Stage) -> list[str]:
        """Names of the sites that this exchange goes to, in a fixed order."""
        chosen = asked_in(stage, self._greetings, work=step.work)
        if not chosen:
            raise QuorumError(f"Stage {stage.name!r} is for {stage.where} sites, and there are none.")
        return sorted(chosen)

    def _sources(self) -> list[str]:
        return sorted(site for site, greeting in self._greetings.items() if greeting.source)

    def _observers(self) -> list[str]:
        return sorted(site for site, greeting in self._greetings.items() if greeting.observer)

    def _instruction(self, step: Step, site: str, split: Split | None) -> Instruction:
        going = self._sent if step.work else self._state
        tensors = lacking(going, self._held.get(site, {}))
        held = {key: array for key, array in going.items() if key not in tensors}
        return Instruction(
            study=self._study.digest,
            exchange=step.exchange,
            stage=step.stage,
            round=step.round,
            work=step.work,
            evaluate=split,
            tensors=tensors,
            held=self._digests.of(held),
        )

    def _counted(self, step: Step, stage: Stage, sites: list[str]) -> tuple[Collected, Aggregator, Gathered]:
        """What came back, once it is enough: repeated after an outage. QuorumError if it stays too little."""
        due = self._due(step, stage, sites)
        needed, before = self._study.rounds.needed(len(due)), Collected()
        if step.work and len(sites) < needed:
            raise self._too_few(step, len(sites), due, needed)
        while True:
            aggregator = aggregator_for(stage, self._tags, self._memory.states)
            gathered = Gathered(aggregator, up_shapes(self._memory.ground(stage)))
            got = self._collect(step, stage, sites, gathered)
            got.add_costs_of(before)
            here = len(got.aggregated)
            if here >= needed:
                return got, aggregator, gathered
            if not self._outages.over(step.exchange, self._outages.lost(got.missing), needed - here):
                break
            before, got.repeats = got, got.repeats + 1
            if not self._study.secure_aggregation:
                self._welcome()  # who came back with other keys is another node
        if step.work:
            raise self._too_few(step, here, due | got.missing, needed)
        return got, aggregator, gathered

    def _collect(self, step: Step, stage: Stage, sites: list[str], aggregator: Aggregator) -> Collected:
        split = split_at(self._study, step)
        on = self._memory.ground(stage)
        shapes = sent_shapes(on, self._state)
        limits = Limits(stage, self._tags, self._sent, shapes, self._study.rounds.largest_change, on)
        watch = replace(step, work=False)
        observers = {site: self._instruction(watch, site, "all") for site in self._observers()}
        if self._study.secure_aggregation:

            def instruction(site: str) -> Instruction:
                return self._instruction(step, site, split)

            needed = self._study.rounds.needed(len(self._due(step, stage, sites)))
            wanted = WantedSums(step.exchange, sites, needed, step.work, split, instruction, self._hold, observers)
            return self._secure.collect(wanted, limits, aggregator)
        sources = self._sources()  # their data are not what the model is judged by
        instructions = {site: self._instruction(step, site, None if site in sources else split) for site in sites}
        return self._collector.collect(instructions | observers, limits, aggregator)

    def _due(self, step: Step, stage: Stage, sites: list[str]) -> dict[str, Code | None]:
        """All sites that should take part in this exchange, with the reason why they do not if it is known."""
        absent = self._absent if counts_absent(self._study, stage, work=step.work) else {}
        return dict.fromkeys(sites) | dict(absent)

    def _too_few(self, step: Step, present: int, due: Mapping[str, Code | None], needed: int) -> QuorumError:
        missing = {site: code for site, code in due.items() if code is not None}
        return QuorumError(
            f"Stage {self._study.plan[step.stage].name!r}, round {step.round}: "
            f"{headline(present, len(due), missing)}; {needed} are needed.",
            fix="Continue with --resume once the sites are back. "
            "A study that is content with fewer says so: rounds.min_sites, and rounds.quorum, a share.",
        )

    def _hold(self, site: str) -> None:
        """Remember that a site has what was sent in this exchange."""
        self._held[site] = self._sent

    def _record(
        self, step: Step, stage: Stage, sites: list[str], got: Collected, scores: Scores, started: float
    ) -> None:
        name = stage.name if step.work else "evaluate"
        seconds = self._spend("rounds" if step.work else "evaluate", started)
        totals = self._totals
        totals.bytes_up += got.bytes_up
        totals.bytes_down += got.bytes_down
        totals.refusals += [
            {"exchange": step.exchange, "stage": name, "round": step.round, "site": site, "code": code.value}
            for site, code in sorted(got.missing.items())
        ]
        row = {
            "exchange": step.exchange,
            "stage": name,
            "stage_index": step.stage,
            "round": step.round,
            "rounds": stage.rounds,
            "seconds": round(seconds, 3),
            "bytes_up": got.bytes_up,
            "bytes_down": got.bytes_down,
            "sites_asked": sites,
            "sites_aggregated": sorted(got.aggregated),
            "missing": {site: code.value for site, code in sorted(got.missing.items())},
            "train": dict(sorted(got.train.items())),
            "spent": dict(sorted(got.spent.items())),
            "train_pooled": got.train_pooled,
            "repeats": got.repeats,
            "ridge_penalties": got.ridge_penalties,
            "evaluated": self._evaluated(step) if got.metrics or got.pooled or got.observed else None,
            "split": split_at(self._study, step) if got.metrics or got.pooled else None,
            "metrics": scores.values(),
            "observers": Scores(self._study, got.observed).values(),
        }
        self._folder.append_history(row)
        facts = {"macro": scores.macro(), "metric": scores.headline_metrics(), "missing": row["missing"]}
        self._folder.event("done", exchange=step.exchange, **facts)

    def _evaluated(self, step: Step) -> dict[str, Any]:
        """Which model went out in this exchange: the one that the exchange before left behind."""
        plan = self._study.plan
        if not plan:
            return {"stage": "start", "round": 0}
        if step.work and step.round > 1:
            return {"stage": plan[step.stage].name, "round": step.round - 1}
        if step.work and step.stage == 0:
            return {"stage": "start", "round": 0}
        before = plan[step.stage - 1 if step.work else step.stage]
        return {"stage": before.name, "round": self._totals.ended.get(before.name, before.rounds)}

    def _spend(self, phase: str, started: float) -> float:
        seconds = time.monotonic() - started
        self._totals.seconds[phase] = self._totals.seconds.get(phase, 0.0) + seconds
        return seconds
