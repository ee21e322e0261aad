"""Says of a site that was asked by hand whether it may have done what it did.

What is legal is derived here from the study's schedule alone, apart from the code by which a site decides. A site may
refuse, if nothing that lasts has changed on its disk. It may answer only what the study has; what privacy is paid for,
and what is shown once, only with the same bytes again. Under secure aggregation it masks with no group but its first,
and sites that were told different things must not share the context of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np

from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.runtime.site import Site
from fedgraft.common.protocol.instructions import Answer, Instruction, MaskedUpdate, Refusal
from fedgraft.common.protocol.routing import forms_of, privacy_request
from fedgraft.common.study.schedule import Step, split_at, step_at
from fedgraft.simulations.audit.lying.consortium import WITNESS, AuditedSites, asked_of_hospitals

_PASSING = frozenset({"progress", "local_state", "features", "masks.sqlite"})
"""What a legal instruction may change on a site's disk again and again: never the ledger, nor what was released."""
_SHOWN = 3


@dataclass
class Tally:
    """How many instructions were sent that the study does not have, how many more, and what went wrong."""

    lies: int = 0
    more: int = 0
    breaches: list[str] = field(default_factory=list)

    def measured(self) -> Measurement:
        """The number of breaches, of which there may be none."""
        sent = f"{self.lies} instructions that the study does not have"
        if not self.breaches:
            words = f"{sent}: none carried out; {self.more} with other models, or again: nothing new left"
            return Measurement(0.0, 0.0, words)
        first = "; ".join(list(dict.fromkeys(self.breaches))[:_SHOWN])
        return Measurement(float(len(self.breaches)), 0.0, f"{sent}, {len(self.breaches)} breaches: {first}")


class Oracle:
    """Asks the sites of a consortium, and judges by what leaves and by what changes on the victim's disk."""

    def __init__(self, sites: AuditedSites, tally: Tally) -> None:
        self.sites = sites
        self._tally = tally
        self._first: dict[int, Answer] = {}
        self._used = 0
        """The highest number of a sum that the victim has masked since it was greeted."""

    @property
    def steps_answered(self) -> list[Step]:
        """The steps that were honestly asked for and answered."""
        return [step for step in self.sites.steps if step.exchange in self._first]

    def bound(self, honest: Instruction) -> bool:
        """Whether all parts that this instruction asks for were masked before, so that their group is settled."""
        masked = set().union(*map(_parts, self._first.values()))
        return honest.groups is not None and honest.groups.parts.keys() <= masked

    def greeted(self) -> None:
        """A coordinator greets all sites anew."""
        self.sites.greet()
        self._used = 0

    def answered(self, step: Step) -> bool:
        """Ask honestly. That it is refused then, or answered otherwise when it comes again, is a breach as well."""
        honest = self.sites.honest(step)
        self._tally.more += 1
        answer = self.sites.ask(honest)
        if isinstance(answer, Refusal):
            self._breach(f"an honest instruction was refused ({answer.code})", honest)
            return False
        first = self._first.setdefault(step.exchange, answer)
        if honest.groups is not None:
            fault = self._masked_wrong(honest, honest, answer)
            if fault or _parts(answer) != set(honest.groups.parts):
                self._breach(f"an honest instruction {fault or 'was not masked'}", honest)
        elif not leaves(answer).items() <= leaves(first).items() or _names(answer) != _names(first):
            self._breach("an honest instruction got another answer when it came again", honest)
        return True

    def refused(self, words: str, asked: Instruction, but: frozenset[str] = frozenset()) -> None:
        """Send what must be refused, and must change nothing on disk `but` what is named."""
        self._tally.lies += 1
        before = self.sites.on_disk()
        answer = self.sites.ask(asked)
        changed = _changed(before, self.sites.on_disk()) - but
        if not isinstance(answer, Refusal):
            self._breach(f"{words} was carried out", asked)
        elif changed:
            self._breach(f"{words} was refused, and changed {', '.join(sorted(changed))}", asked)

    def told_nothing_new(self, words: str, asked: Instruction, site: Site) -> None:
        """Send what `site` may refuse, or answer with nothing that has not left before."""
        self._tally.lies += 1
        answer = site.visit(asked)
        if _parts(answer) or (asked.groups is None and self._new(asked, answer)):
            self._breach(words, asked)

    def judge(self, words: str, asked: Instruction, honest: Instruction) -> None:
        """Send an instruction that differs from an honest one of some step in the field `words`, if at all."""
        if asked.groups is not None and honest.groups is not None and asked.groups.number == honest.groups.number:
            self.sites.number += 1  # a number that was used would be refused for that alone
            asked = replace(asked, groups=replace(asked.groups, number=self.sites.number))
        due, complete = self._due(asked), _complete(asked, honest)
        legal = due and complete and _as_agreed(asked, honest)
        self._tally.more += legal
        self._tally.lies += not legal
        before = self.sites.on_disk()
        answer = self.sites.ask(asked)
        changed = _changed(before, self.sites.on_disk())
        if isinstance(answer, Refusal):
            begun = due and complete  # so that work may have begun, and gone wrong: with a model of NaN, say
            changed -= _PASSING - (set() if legal else {"masks.sqlite"}) if begun else {"progress"} if due else set()
            fault = "was refused" if changed else ""
        elif not due or not complete:
            fault = "was carried out"
        else:
            changed -= _PASSING
            fault = self._wrong(asked, honest, answer, legal=legal) or ("was answered" if changed else "")
        if fault:
            with_it = f", and changed {', '.join(sorted(changed))}" if changed else ""
            self._breach(f"another {words} {fault}{with_it}", asked)

    def own_entries(self) -> frozenset[str]:
        """Digests of what the victim keeps for itself."""
        return frozenset(digest for name, digest in self.sites.on_disk().items() if name.startswith("local_state/"))

    def kept(self, own: frozenset[str], asked: Instruction) -> None:
        """Own entries of before may be put aside, never deleted."""
        if own - self.own_entries():
            self._breach("own entries were deleted by a course that begins anew", asked)

    def forbidden(self, asked: Instruction, honest: Instruction) -> bool:
        """Whether no site may answer this, were it the first instruction of its step."""
        return not self._due(asked) or not _complete(asked, honest)

    def _wrong(self, asked: Instruction, honest: Instruction, answer: Answer, *, legal: bool) -> str:
        """What is wrong with an answer at its turn; "" for nothing."""
        if honest.groups is not None:
            return self._masked_wrong(asked, honest, answer)
        if legal:
            return "got something new where privacy is paid for once" if self._new(asked, answer) else ""
        # What a site does not look at must make no difference.
        plain = self.sites.ask(replace(honest, evaluate=asked.evaluate, tensors=asked.tensors))
        return "" if leaves(plain) == leaves(answer) else "made a difference"

    def _masked_wrong(self, asked: Instruction, honest: Instruction, answer: Answer) -> str:
        """What is wrong with an answer under secure aggregation; "" for nothing."""
        if not isinstance(answer, MaskedUpdate) or asked.groups is None or honest.groups is None:
            return "was answered in the open"
        number = asked.groups.number
        if answer.parts and number <= self._used:
            return "was masked under a number that was used"
        self._used = number if answer.parts else self._used
        self.sites.number = max(self.sites.number, number)
        if any(set(asked.groups.parts[part]) != set(self.sites.names) for part in answer.parts):
            return "was masked with another group"
        true = replace(honest, groups=replace(honest.groups, number=number))
        told = self.sites.ask(true, WITNESS)
        contexts = told.contexts if isinstance(told, MaskedUpdate) else {}
        for part, context in answer.contexts.items():
            if (context == contexts.get(part)) != (_about(asked, part) == _about(true, part)):
                return "was masked for a sum with those who were told otherwise, or with nobody"
        return ""

    def _new(self, asked: Instruction, answer: Answer) -> bool:
        """Whether noised entries, or figures that are shown once, differ from those of the first answer."""
        stage = self.sites.study.plan[asked.stage]
        noised = asked.work and privacy_request(stage) is not None
        once = (*(["/tensors"] if noised else []), *(["/metrics"] if self.sites.shows_once else []))
        told = {name: value for name, value in leaves(answer).items() if name.startswith(once)}
        return bool(once) and not told.items() <= leaves(self._first.get(asked.exchange)).items()

    def _due(self, asked: Instruction) -> bool:
        """Whether the study has an exchange with this number, stage, round, work and split."""
        study = self.sites.study
        step = step_at(study, asked.exchange)
        if step is None or not asked_of_hospitals(study, step) or asked.study != study.digest:
            return False
        same = (asked.stage, asked.round, asked.work) == (step.stage, step.round, step.work)
        return same and asked.evaluate in (None, split_at(study, step))

    def _breach(self, words: str, asked: Instruction) -> None:
        self._tally.breaches.append(f"exchange {asked.exchange}: {words}")


def _complete(asked: Instruction, honest: Instruction) -> bool:
    """Whether all entries come, each in its shape and type, and nothing else."""
    return forms_of(asked.tensors) == forms_of(honest.tensors) and asked.held == honest.held


def _as_agreed(asked: Instruction, honest: Instruction) -> bool:
    """Whether groups, and whatever else instructions may have one day, are as an honest coordinator has them.

    Numbers of masked sums may be skipped, but never used again, which is looked at elsewhere.
    """
    free = {"evaluate", "tensors", "groups"}
    said = [
        {one.name: getattr(which, one.name) for one in fields(which) if one.name not in free}
        for which in (asked, honest)
    ]
    groups = [which.groups.parts if which.groups is not None else None for which in (asked, honest)]
    return leaves(said[0]) == leaves(said[1]) and groups[0] == groups[1]


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Files and folders of a site's folder in which anything came, went or changed."""
    paths = (path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return {path.partition("/")[0] for path in paths}


def _parts(answer: Answer) -> set[str]:
    return set(answer.parts) if isinstance(answer, MaskedUpdate) else set()


def _about(asked: Instruction, part: str) -> dict[str, Any]:
    """All that a mask of this part must depend on."""
    own = asked.groups.parts.get(part) if asked.groups is not None else None
    return leaves(replace(asked, groups=None)) | {"group": own}


def _names(answer: Answer) -> set[str]:
    """Names of the entries and metrics of an answer."""
    return {name for name in leaves(answer) if name.startswith(("/tensors", "/metrics"))}


def leaves(value: Any) -> dict[str, Any]:
    """All that an answer or an instruction says, by path; but not what a study has cost, which is the ledger's."""
    return dict(_paths(value, ""))


def _paths(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        for one in fields(value):
            if one.name != "spent":
                yield from _paths(getattr(value, one.name), f"{path}/{one.name}")
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _paths(one, f"{path}/{key}")
    elif isinstance(value, np.ndarray):
        yield path, (value.shape, value.dtype.name, value.tobytes())
    else:
        yield path, value
