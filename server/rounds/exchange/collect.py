"""What comes back in one exchange: replies are validated as they come, and aggregated in the order of names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedgraft.common.base.errors import ENDS
from fedgraft.common.compression.changes import restored
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.protocol.instructions import (
    Arrays,
    Code,
    Greeting,
    Instruction,
    MaskedUpdate,
    Refusal,
    Update,
)
from fedgraft.common.secure_aggregation.summing import Pooled, mean_loss
from fedgraft.common.study.study import Study
from fedgraft.server.aggregation.joint import Joint
from fedgraft.server.fleet.fleet import Fleet, Reply
from fedgraft.server.rounds.exchange.out_of_turn import OutOfTurn
from fedgraft.server.rounds.exchange.release import Releases
from fedgraft.server.rounds.exchange.validation import Limits, fault, metric_sums

Tell = Callable[..., None]
"""Called with a kind of event and its facts."""


@dataclass
class Collected:
    """What came back in one exchange. `pooled` and `train_pooled` are all there is of a masked one."""

    aggregated: list[str] = field(default_factory=list)
    missing: dict[str, Code] = field(default_factory=dict)
    train: dict[str, dict[str, float]] = field(default_factory=dict)
    train_pooled: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, TaskSums]] = field(default_factory=dict)
    pooled: dict[str, Pooled] = field(default_factory=dict)
    observed: dict[str, dict[str, TaskSums]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    """By site the model that it took, where sites choose."""
    spent: dict[str, dict[str, Any]] = field(default_factory=dict)
    ridge_penalties: dict[str, float] = field(default_factory=dict)
    """By task the ridge penalty, where the sums have decided it."""
    repeats: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def join(self, other: Collected) -> None:
        """Take in what came back of the same exchange from the sites of another cluster."""
        self.aggregated += other.aggregated
        self.missing |= other.missing
        self.observed |= other.observed
        self.spent |= other.spent
        self.pooled = {
            task: own + self.pooled[task] if task in self.pooled else own for task, own in other.pooled.items()
        }
        self.train_pooled = mean_loss(self.train_pooled, other.train_pooled)
        self.add_costs_of(other)

    def add_costs_of(self, before: Collected) -> None:
        """Count what an attempt took that came to nothing."""
        self.repeats += before.repeats
        self.bytes_up += before.bytes_up
        self.bytes_down += before.bytes_down


class Collector:
    """Sends instructions of one study, and takes in what comes back."""

    def __init__(
        self,
        study: Study,
        fleet: Fleet,
        greetings: Mapping[str, Greeting],
        tell: Tell,
        releases: Releases,
        folder: Path,
    ) -> None:
        self._study = study
        self._folder = folder
        self._releases = releases
        self._fleet = fleet
        self._greetings = greetings
        self._tell = tell

    def collect(
        self,
        instructions: Mapping[str, Instruction],
        whole: Mapping[str, Arrays],
        limits: Mapping[str, Mapping[str, Limits]],
        take: Callable[[Update, str], None],
    ) -> Collected:
        """Validate replies as they come, and take them in by the sites' names, in their order: sums are reproducible.

        `whole` is by site all that its instruction rests on, and `limits` by site, and by the model that it says it has
        taken ("" where it had no choice), what its update is held against.
        """
        got, waiting = Collected(), sorted(instructions, reverse=True)
        stages = [own.stage for one in limits.values() for own in one.values()]
        joint = Joint(stages[0].joint_lambda if stages else None)
        ready = OutOfTurn(self._folder)
        for reply in self.replies(instructions, whole, got):
            instruction = instructions[reply.site]
            ready.put(reply.site, self.vetted(got, reply, instruction, limits[reply.site]))
            while waiting and waiting[-1] in ready:
                site = waiting.pop()
                update = ready.take(site)
                if update is not None and instructions[site].work:
                    joint.pass_on(update, partial(_take, take, site), of_source=self._greetings[site].source)
        joint.finish()
        return got

    def replies(
        self, instructions: Mapping[str, Instruction], states: Mapping[str, Arrays], got: Collected
    ) -> Iterator[Reply]:
        """One reply of each site, as they come. A site that has lost what it held is asked again, with everything.

        A site whose people have not let its answer go yet is waited for. `states` are by site.
        """
        again: dict[str, Instruction] = {}
        for reply in self._answers(instructions, again, states):
            got.bytes_up += reply.bytes_up
            got.bytes_down += reply.bytes_down
            instruction = instructions[reply.site]
            lost = isinstance(reply.answer, Refusal) and reply.answer.code is Code.MISSING_TENSORS
            if lost and reply.site not in again:
                again[reply.site] = replace(instruction, tensors=states[reply.site], held="")
                continue
            self._tell("reply", exchange=instruction.exchange, site=reply.site)
            yield reply

    def _answers(
        self, instructions: Mapping[str, Instruction], again: dict[str, Instruction], states: Mapping[str, Arrays]
    ) -> Iterator[Reply]:
        """The replies to `instructions`, then those to the instructions that were put into `again` meanwhile.

        Replies of sites that hold theirs come when they are let go.
        """
        deadline_s, held = self._study.rounds.deadline_s, dict[str, Instruction]()

        def asked(some: Mapping[str, Instruction]) -> Iterator[Reply]:
            for reply in self._fleet.exchange(some, deadline_s) if some else ():
                if isinstance(reply.answer, Refusal) and reply.answer.code is Code.HELD:
                    held[reply.site] = some[reply.site]
                else:
                    yield reply

        yield from asked(instructions)
        yield from asked(dict(again))
        yield from self._releases.answers(held, states, deadline_s)

    def vetted(
        self, got: Collected, reply: Reply, instruction: Instruction, limits: Mapping[str, Limits]
    ) -> Update | None:
        """The reply in the open of one site, if it may count; what it says is noted in `got`; `limits` by choice."""
        site, answer = reply.site, reply.answer
        if isinstance(answer, Refusal):
            got.missing[site] = answer.code
            return None
        if isinstance(answer, MaskedUpdate) or (own := limits.get(answer.cluster)) is None:
            got.missing[site] = Code.GARBAGE
            return None
        try:
            if instruction.work:
                tensors = restored(own.stage, own.tags, answer.tensors, own.state)
                answer = answer if tensors is answer.tensors else replace(answer, tensors=tensors)
            code = fault(answer, instruction, own) or self._bad_count(site, answer)
            sums = metric_sums(answer, self._study, instruction) if code is None else None
        except ENDS:
            raise
        except BaseException as error:  # the wall: whatever a site sends costs that site its round, and nobody else
            self._tell("garbage", exchange=instruction.exchange, site=site, error=type(error).__name__)
            sums, code = None, None
        if code is not None or sums is None:
            got.missing[site] = code or Code.GARBAGE
            return None
        if self._greetings[site].observer:
            if sums:
                got.observed[site] = sums
            return None
        if answer.spent is not None:
            got.spent[site] = asdict(answer.spent)
        got.aggregated.append(site)
        got.train[site] = dict(answer.train)
        if answer.cluster:
            got.chosen[site] = answer.cluster
        if sums:
            got.metrics[site] = sums
        return answer

    def _bad_count(self, site: str, answer: Update) -> Code | None:
        """A site may not count more cases than it said that it has."""
        most = self._greetings[site].cases.get("train", 0)
        return Code.BAD_WEIGHT if max(answer.weights.values(), default=0) > most else None


def _take(take: Callable[[Update, str], None], site: str, update: Update) -> None:
    take(update, site)


def headline(present: int, asked: int, missing: Mapping[str, Code]) -> str:
    """Who took part, in one line: "4 of 5 sites; missing: north, deadline"."""
    line = f"{present} of {asked} sites"
    if missing:
        line += "; missing: " + "; ".join(f"{site}, {code.value}" for site, code in sorted(missing.items()))
    return line
