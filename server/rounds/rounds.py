"""The round loop: instruct, collect, validate, aggregate, save; then once more to evaluate, and the run is done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from fedgraft.common.base.errors import QuorumError
from fedgraft.common.closed_form.cox import followed
from fedgraft.common.closed_form.ood import ood_model
from fedgraft.common.protocol.instructions import (
    Arrays,
    Code,
    Digests,
    Greeting,
    Instruction,
)
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.inputs import Split
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.schedule import Step, schedule, split_at, stage_of
from fedgraft.common.study.study import Study
from fedgraft.server.fleet.fleet import Fleet, Lacking
from fedgraft.server.rounds.exchange.agreed import demand_agreed, hello_of
from fedgraft.server.rounds.exchange.attendance import asked_in, counts_absent
from fedgraft.server.rounds.exchange.collect import Collected, Collector, headline
from fedgraft.server.rounds.exchange.outages import Outages
from fedgraft.server.rounds.exchange.release import Releases
from fedgraft.server.rounds.exchange.secure_aggregation import SecureCollector, WantedSums
from fedgraft.server.rounds.exchange.validation import Limits, greeting_fault
from fedgraft.server.rounds.history_row import history_row
from fedgraft.server.rounds.models import ALL, RoundAggregation, RunModels
from fedgraft.server.rounds.outcome import RunOutcome, Totals
from fedgraft.server.rounds.scores import Scores
from fedgraft.server.rounds.stopping import averaged, best, stopped, undecided
from fedgraft.server.runs.retained_statistics import RetainedStatistics, features_digest
from fedgraft.server.runs.run_folder import JOINED, RunFolder


class Coordinator:
    """One run of a study over a fleet, from the first exchange or from a checkpoint."""

    def __init__(self, study: Study, fleet: Fleet, folder: RunFolder, state: Arrays, tags: Tags) -> None:
        self._study = study
        self._fleet = fleet
        self._folder = folder
        self._tags = tags
        self._totals = Totals()
        self._models = RunModels(study, tags, state, self._totals)
        self._digests = Digests()
        self._lacking = Lacking(self._digests)
        self._nothing: Arrays = {}
        self._held: dict[str, Arrays] = {}
        self._greetings: dict[str, Greeting] = {}
        self._absent: dict[str, Code] = {}
        self._others: dict[str, Code] = {}
        wait_s = study.rounds.release_wait_h * 3600
        releases = Releases(fleet, wait_s, folder.event, folder.held_since)
        self._collector = Collector(study, fleet, self._greetings, folder.event, releases, folder.path)
        self._outages = Outages(fleet, folder.event)
        self._secure: dict[str, SecureCollector] = {}
        self._first = 0
        self._hello = hello_of(study, folder.agreement())

    def run(self) -> RunOutcome:
        """Carry out what is left of the plan. QuorumError if too few sites answer in a round."""
        done = 0
        if (checkpoint := self._folder.load_checkpoint()) is not None:
            done, self._totals = checkpoint.exchange, Totals(**checkpoint.totals)
            self._models.restore(checkpoint.state, checkpoint.memory, self._totals)
        self._greet()
        scores = validation = Scores(self._study, {})
        for step in schedule(self._study):
            if step.exchange <= done or (step.work and self._study.plan[step.stage].name in self._totals.ended):
                continue
            self._first = self._first or step.exchange
            scores = self._exchange(step)
            if not step.work and split_at(self._study, step) == "val":
                validation = scores
            if step.work:
                self._folder.save_checkpoint(step.exchange, *self._models.arrays(), vars(self._totals))
        late = frozenset(site for site in self._greetings if not self._fleet.expects(site))
        models = self._models.of_cluster
        ood = None if self._models.apart else ood_model(models[ALL].memory.states)
        told = {} if self._models.apart else followed(self._study, models[ALL].memory.states, models[ALL].state)
        states = {name: model.state for name, model in models.items()}
        points = validation.operating_points(self._study.evaluate.operating_point)
        who = self._greetings, self._absent
        return RunOutcome(states, *who, scores, self._totals, points, validation, late, self._others, ood, told)

    def _greet(self) -> None:
        started = time.monotonic()
        self._folder.event("greeting")
        self._outages.reunited(self._folder.had(), all_of_them=self._study.secure_aggregation)
        self._welcome()
        self._spend("prepare", started)
        self._folder.event("greeted", sites=list(self._greetings), absent=self._absent)
        demand_agreed(self._absent)
        if not self._greetings:
            reasons = ", ".join(f"{site}: {code}" for site, code in self._absent.items()) or "nobody answered"
            raise QuorumError(f"No site can take part ({reasons}).", fix="See site.log in each site's folder.")
        wanting = [s.name for s in self._study.plan if s.where == "source" or s.joint_lambda is not None]
        if wanting and not self._sources():
            fix = "Start a site with public_source: true, or give the scenario one."
            raise QuorumError(f"Stage {wanting[0]!r} needs a site that holds the source, and none is there.", fix=fix)

    def _welcome(self) -> None:
        """Take in sites that are there and have not greeted yet: at the start, and those that come later."""
        before = set(self._greetings)
        for site, answer in self._fleet.greet(self._hello).items():
            code = greeting_fault(answer, self._study) if isinstance(answer, Greeting) else answer.code
            if code is not None:
                self._stays_out(site, code)
            elif isinstance(answer, Greeting):
                self._greetings[site] = answer
                self._absent.pop(site, None)
                self._others.pop(site, None)
        if self._first and (joined := sorted(self._greetings.keys() - before)):
            self._folder.event(JOINED, sites=joined)

    def _stays_out(self, site: str, code: Code) -> None:
        (self._absent if self._fleet.expects(site) else self._others)[site] = code

    def _exchange(self, step: Step) -> Scores:
        started = time.monotonic()
        # A study with secure aggregation keeps the group that it began with: its masks were agreed on at the greeting.
        if step.exchange > self._first and not self._study.secure_aggregation:
            self._welcome()
        stage = stage_of(self._study, step)
        self._models.prepare(stage, step)
        sites = self._asked(step, stage)
        self._folder.event(
            "exchange",
            exchange=step.exchange,
            stage=stage.name if step.work else "evaluate",
            sites=len(sites),
        )
        got, aggregation = self._counted(step, stage, sites)
        self._lacking.forget()
        for site in (*got.aggregated, *got.observed):
            self._hold(site)
        scores = Scores(self._study, got.metrics, got.pooled)
        if step.work:
            self._take(step, stage, aggregation, scores, got, sites)
        self._digests.keep_only([array for model in self._models for array in model.kept])
        self._record(step, stage, sites, got, scores, started)
        return scores

    def _take(
        self, step: Step, stage: Stage, aggregation: RoundAggregation, scores: Scores, got: Collected, sites: list[str]
    ) -> None:
        """The state after a round: aggregated, averaged, or the best one of a stage that ends here."""
        if undecided(stage, scores):
            self._totals.undecided[stage.name] = self._totals.undecided.get(stage.name, 0) + 1
        # Clusters go through a stage together: all are judged by the same figures.
        ends = {stopped(stage, step.round, scores, model.state, model.memory.states) for model in self._models}
        if (number := ends.pop()) is not None:
            self._totals.ended[stage.name] = number
            for model in self._models:
                model.state |= best(stage, model.memory.states)
            self._folder.event("stopped", stage=stage.name, round=step.round, best=number)
            return
        self._models.chose(got.chosen)
        for name, aggregated in aggregation.results().items():
            model, own = self._models.of_cluster[name], [s for s in sites if self._models.name_of(s) == name]
            share = len(set(own) & set(got.aggregated)) / len(own) if own else 0.0
            if name and not share:  # no site of this cluster answered
                model.state |= aggregated
                continue
            came = aggregation.gathered[name].sums, share
            ended = model.memory.learn(stage, step.round, model.state, aggregated, came)
            model.state |= averaged(stage, step.round, ended, model.memory.states)
        self._models.form(stage, aggregation.sums)
        got.ridge_penalties = aggregation.ridge_penalties
        if kept := aggregation.kept:
            features = features_digest(next(iter(self._models)).state, self._tags)
            by_site = dict(zip(sorted(got.aggregated), kept, strict=True))
            RetainedStatistics(stage.name, features, by_site).write(self._folder.path)

    def _asked(self, step: Step, stage: Stage) -> list[str]:
        """Names of the sites that this exchange goes to, in a fixed order."""
        for site in [site for site, one in self._greetings.items() if not (one.source or self._models.has(site))]:
            del self._greetings[site]
            self._stays_out(site, Code.NO_CLUSTER)
        chosen = asked_in(stage, self._greetings, work=step.work)
        if not chosen:
            raise QuorumError(f"Stage {stage.name!r} is for {stage.where} sites, and there are none.")
        return sorted(chosen)

    def _sources(self) -> list[str]:
        return sorted(site for site, greeting in self._greetings.items() if greeting.source)

    def _observers(self) -> list[str]:
        return sorted(site for site, greeting in self._greetings.items() if greeting.observer)

    def _instruction(self, step: Step, site: str, split: Split | None) -> Instruction:
        going = self._models.going(site, work=step.work)
        tensors, held = self._lacking.of(going, self._held.get(site, self._nothing))
        return Instruction(
            study=self._study.digest,
            exchange=step.exchange,
            stage=step.stage,
            round=step.round,
            work=step.work,
            evaluate=split,
            tensors=tensors,
            held=held,
        )

    def _counted(self, step: Step, stage: Stage, sites: list[str]) -> tuple[Collected, RoundAggregation]:
        """What came back, once it is enough: repeated after an outage. QuorumError if it stays too little."""
        due = self._due(step, stage, sites)
        needed, before = self._study.rounds.needed(len(due)), Collected()
        if step.work and len(sites) < needed:
            raise self._too_few(step, len(sites), due, needed)
        while True:
            aggregation = self._models.aggregation(stage)
            got = self._collect(step, stage, sites, aggregation)
            got.add_costs_of(before)
            here = len(got.aggregated)
            if here >= needed:
                return got, aggregation
            if not self._outages.over(step.exchange, self._outages.lost(got.missing), needed - here):
                break
            before, got.repeats = got, got.repeats + 1
            if not self._study.secure_aggregation:
                self._welcome()  # who came back with other keys is another node
        if step.work:
            raise self._too_few(step, here, due | got.missing, needed)
        return got, aggregation

    def _collect(self, step: Step, stage: Stage, sites: list[str], aggregation: RoundAggregation) -> Collected:
        split, limits = split_at(self._study, step), self._models.limits(stage)
        watch = replace(step, work=False)
        observers = {site: self._instruction(watch, site, "all") for site in self._observers()}
        if self._study.secure_aggregation:
            return self._summed(step, sites, split, limits, observers, aggregation)
        sources = self._sources()  # their data are not what the model is judged by
        instructions = {site: self._instruction(step, site, None if site in sources else split) for site in sites}
        everybody = instructions | observers
        whole = {site: self._models.going(site, work=step.work) for site in everybody}
        own = {site: self._models.limits_of(site, limits) for site in everybody}
        return self._collector.collect(everybody, whole, own, aggregation.take)

    def _summed(
        self,
        step: Step,
        sites: list[str],
        split: Split | None,
        limits: Mapping[str, Limits],
        observers: Mapping[str, Instruction],
        aggregation: RoundAggregation,
    ) -> Collected:
        """The masked sums, of one group after the other: its sites mask among themselves."""
        got = Collected()
        stage = stage_of(self._study, step)

        def instruction(site: str) -> Instruction:
            return self._instruction(step, site, split)

        due, watching = (self._models.masking(list(own)) for own in (self._due(step, stage, sites), observers))
        for name, there in self._models.masking(sites).items():
            wanted = WantedSums(
                step.exchange,
                there,
                self._study.rounds.needed(len(due[name])),
                step.work,
                split,
                instruction,
                self._hold,
                {site: observers[site] for site in watching[name]},
            )
            if name not in self._secure:
                self._secure[name] = SecureCollector(self._study, self._collector, self._greetings, self._outages)
            own = limits[self._models.of_group(name)]
            got.join(self._secure[name].collect(wanted, own, partial(aggregation.take_sum, group=name)))
        return got

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
        self._held[site] = self._models.going(site, work=True)

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
        row = history_row(self._study, step, sites, got, scores, totals.ended)
        self._folder.append_history(row | {"seconds": round(seconds, 3)})
        facts = {"macro": scores.macro(), "metric": scores.headline_metrics(), "missing": row["missing"]}
        self._folder.event("done", exchange=step.exchange, **facts)

    def _spend(self, phase: str, started: float) -> float:
        seconds = time.monotonic() - started
        self._totals.seconds[phase] = self._totals.seconds.get(phase, 0.0) + seconds
        return seconds
