"""A coordinator that lies: instructions that the study does not have, sent by hand to real sites.

Each course is a way to play a study: lies at every step, stages out of turn, a run that is taken up again, a site that
has lost a file, a plan that no check has seen. What an instruction may say, and what a site may do, `oracle` knows.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedgraft.client.attacks.attack_target import CPU
from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.hash_chain import witness_folder
from fedgraft.client.privacy.policy import Metrics
from fedgraft.client.runtime.log import close
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.protocol.instructions import Instruction
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.study.plan import Gradient, Recalibrate, Role, Select, Stage
from fedgraft.common.study.schedule import Step
from fedgraft.common.study.study import Study
from fedgraft.simulations.audit.lying.consortium import VICTIM, AuditedSites, short, written
from fedgraft.simulations.audit.lying.lies import lies_about, mixed
from fedgraft.simulations.audit.lying.oracle import Oracle, Tally

_LIES, _MIXED = 300, 90
"""So many lies at most about one field, and about several, over all steps of the study."""
_FEWER = "fewer sites"
_STILL = {Role.SCALE, Role.SITE_EFFECTS, Role.BASE_MODEL, Role.DOMAIN_DISCRIMINATOR}
"""What no site trains."""


def carried_out(study: Study, seed: int) -> Measurement:
    """How many lies a site falls for, in a short form of the study. `seed` draws which are told."""
    tally, small = Tally(), short(study)
    masked = study.secure_aggregation
    rules: tuple[Metrics, ...] = ("secure_aggregation",) if masked else ("exact", "noised", "suppressed")
    try:
        with tempfile.TemporaryDirectory(prefix="fedgraft-") as temporary:
            folder = Path(temporary)
            for rule in rules:
                _attacked(small, folder / rule, rule, tally, np.random.default_rng(seed))
            for stage in small.plan:
                if (planted := _planted(small, stage)) is not None:
                    local_model = LocalModel(planted, CPU)
                    with closing(AuditedSites(planted, local_model, folder / stage.name, rules[0])) as sites:
                        _bare(Oracle(sites, tally))
    except Refused as refused:  # by the greeting: then nothing was tried, which is no reason for trust
        return Measurement(float("inf"), 0.0, f"made-up sites do not take part in the study: {refused.code}")
    return tally.measured()


def _attacked(study: Study, folder: Path, rule: Metrics, tally: Tally, rng: np.random.Generator) -> None:
    """All courses under one rule of metrics; for rules that show figures once, only the end, where they are shown."""
    local_model = LocalModel(study, CPU)
    with closing(AuditedSites(study, local_model, folder / "told", rule)) as sites:
        oracle, once = Oracle(sites, tally), sites.shows_once
        _play(oracle, sites.steps[-1:] if once else sites.steps, rng)
        _lost(oracle, folder / "lost")
        if not once:
            _resumed(oracle)
    if not once:
        with closing(AuditedSites(study, local_model, folder / "late", rule)) as sites:
            _late_first(Oracle(sites, tally))


def _play(oracle: Oracle, steps: tuple[Step, ...], rng: np.random.Generator) -> None:
    """Lies at every step, before and after the honest instruction; and steps that are over."""
    for at, step in enumerate(steps):
        honest = oracle.sites.honest(step)
        single = lies_about(honest, rng)
        chosen = sorted(rng.permutation(len(single))[: _LIES // len(steps)])
        lies = [single[one] for one in chosen] + mixed(single, honest, _MIXED // len(steps), rng)
        lies += _fewer(honest)
        for words, lie in lies:
            if oracle.forbidden(lie, honest) or (words == _FEWER and oracle.bound(honest)):
                oracle.judge(words, lie, honest)
        if not oracle.answered(step):
            return
        oracle.answered(step)
        for words, lie in lies:
            oracle.judge(words, lie, honest)
        oracle.answered(step)
        for earlier in steps[:at]:
            oracle.refused("an exchange that is over", oracle.sites.honest(earlier))


def _late_first(oracle: Oracle) -> None:
    """The end of the study comes first; all that is before it is then over."""
    *before, last = oracle.sites.steps
    if oracle.answered(last):
        for step in before:
            oracle.refused("an earlier stage after a later one", oracle.sites.honest(step))


def _resumed(oracle: Oracle) -> None:
    """The coordinator greets anew. It may go back by one, or begin; nothing new comes of either."""
    *before, last = oracle.sites.steps
    oracle.greeted()
    for step in before:
        if 1 < step.exchange < last.exchange - 1:
            oracle.refused("a step too far back after a greeting", oracle.sites.honest(step))
    for step in before[-1:] + before[:1]:
        if step is before[0] and len(before) > 1:
            _stepped_back(oracle, before[1:-1])
            _broken_off(oracle, step)
        honest = oracle.sites.honest(step)
        oracle.judge("repetition", honest, honest)
        for words, lie in _fewer(honest):
            oracle.judge(words, lie, honest)


def _stepped_back(oracle: Oracle, steps: list[Step]) -> None:
    """A greeting each time does not lead further back, step by step."""
    for step in reversed(steps):
        oracle.greeted()
        oracle.refused("a step too far back after many greetings", oracle.sites.honest(step))


def _broken_off(oracle: Oracle, first: Step) -> None:
    """The study begins anew with an instruction that fails; what the site has for itself must still be there."""
    own = oracle.own_entries()
    oracle.greeted()
    honest = oracle.sites.honest(first)
    oracle.refused("a beginning without tensors", replace(honest, tensors={}), frozenset({"progress", "local_state"}))
    oracle.sites.ask(oracle.sites.honest(first))
    oracle.kept(own, honest)


def _lost(oracle: Oracle, folder: Path) -> None:
    """Each file of the victim's folder is lost once; then it goes on, or is greeted by a coordinator."""
    for at, name in enumerate(written(oracle.sites.place())):
        for greets in (False, True):
            place = folder / f"{at}-{greets}"
            state = oracle.sites.place()
            shutil.copytree(state, place)
            if (witness := witness_folder(state)).is_dir():  # it lies beside the site's folder
                shutil.copytree(witness, witness_folder(place))
            (place / name).unlink()
            _without(oracle, name, place, greets=greets)
            close(place)


def _without(oracle: Oracle, name: str, place: Path, *, greets: bool) -> None:
    """Ask a site that has lost the file `name` for all that it answered before, and for sums of fewer sites."""
    sites, nonces = oracle.sites, dict(oracle.sites.nonces)
    site: Site | None = None
    try:
        site = sites.open(place=place)
        nonces[VICTIM] = site.greet().nonce if greets else nonces[VICTIM]
    except (Refused, FedgraftError):
        if site is None:
            return
    for step in oracle.steps_answered if greets else oracle.steps_answered[-1:]:
        asked = sites.honest(step)
        if asked.groups is None:
            oracle.told_nothing_new(f"{name} was lost: something else was answered", asked, site)
            continue
        parts = dict.fromkeys(asked.groups.parts, nonces)
        for _, lie in _fewer(replace(asked, groups=replace(asked.groups, parts=parts))):
            oracle.told_nothing_new(f"{name} was lost: fewer sites got a sum", lie, site)


def _bare(oracle: Oracle) -> None:
    """A plan that its check would not let through: the site looks at what really happened."""
    first, second, *_ = oracle.sites.steps
    if oracle.answered(first):
        words = "private work on own entries that were computed without noise"
        oracle.refused(words, oracle.sites.honest(second), but=frozenset({"progress", "features"}))


def _planted(study: Study, stage: Stage) -> Study | None:
    """A stage without noise that keeps its entries at the site, before a private stage that would use them."""
    if privacy_request(stage) is None or stage.where == "source":
        return None
    roles = frozenset(tag.role for tag in LocalModel(study, CPU).tags.values() if tag not in stage.share) - _STILL
    if not roles:
        return None
    mine = Select(roles=roles)
    norms = roles == {Role.NORM_STATS}
    local = Recalibrate() if norms else Gradient(train=mine, steps=1, batch_size=8, lr=0.01)
    plan = [Stage(name="planted", local=local, keep=mine), stage.model_copy(update={"rounds": 1})]
    return Study.model_validate(study.model_dump() | {"plan": [one.model_dump() for one in plan]})


def _fewer(honest: Instruction) -> list[tuple[str, Instruction]]:
    """The same with one of the other sites missing from every group."""
    if honest.groups is None:
        return []
    lies = []
    for gone in sorted({name for group in honest.groups.parts.values() for name in group} - {VICTIM}):
        parts = {
            part: {name: nonce for name, nonce in group.items() if name != gone}
            for part, group in honest.groups.parts.items()
        }
        lies.append((_FEWER, replace(honest, groups=replace(honest.groups, parts=parts))))
    return lies
