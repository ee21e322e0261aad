"""The stages that methods are put together from, and the longer ones of these methods."""

from __future__ import annotations

from typing import Any, Literal

from fedgraft.common.base.value import Value
from fedgraft.common.study.model_spec import Teacher
from fedgraft.common.study.plan import (
    Gradient,
    Harmonise,
    Recalibrate,
    Role,
    Select,
    Stage,
    Statistics,
    named,
)
from fedgraft.common.study.stages.aggregates import (
    Aggregation,
    ComBat,
    Discriminant,
    Logistic,
    Mean,
    Moments,
    NearestMean,
    Ridge,
    Standardise,
    Threshold,
)
from fedgraft.common.study.stages.losses import Discrepancy, Loss
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.stages.training import InnerSteps, Rollback

_RIDGE = Ridge()
_NEWTON_STEPS = 8
"""Near the end each step doubles the right digits, so that more would change nothing."""


class NamedMethod(Value):
    """A preset by name with the few settings that all presets understand.

    `rounds` are those of the gradient stage; `local` is its local work.
    """

    name: str
    rounds: int = 10
    local: Gradient = Gradient(epochs=1)
    sums: PrivateSums | None = None
    """Noise on the sums of a closed-form head."""
    columns: PrivateSums | None = None
    """Noise on the sums from which a table's columns get their scale; see `ranges` of the input."""
    ood_detection: bool = False
    """Two more exchanges, from which `fedgraft predict` can tell images that are out of distribution for the sites."""
    retain_statistics: bool = False
    """The coordinator keeps each site's sums of a closed-form head, so that sites can leave or join it afterwards."""
    personalise: Literal["always", "best"] = "always"
    """`best`: each site also trains a model for itself alone, before others (of `probe_finetune` after the ridge
    heads), and uses that where it is better on its validation cases, without telling anybody. Methods that end with a
    model of each site's own ask that of this one."""
    teacher: Teacher | None = None
    """A finished model, for methods whose sites learn from one."""


_MEAN = Mean()


def rounds_of(
    method: NamedMethod, share: str, keep: str = "none", train: str = "all", aggregate: Aggregation = _MEAN
) -> Stage:
    """A gradient stage at the sites with labels."""
    local = method.local.model_copy(update={"train": named(train)}) if train != "all" else method.local
    return Stage(
        name="train",
        where="labelled",
        local=local,
        share=named(share),
        keep=named(keep),
        aggregate=aggregate,
        rounds=method.rounds,
    )


def with_losses(method: NamedMethod, *losses: Loss, **changes: Any) -> NamedMethod:
    """The same method with more losses, and other settings of its local work."""
    return method.model_copy(
        update={"local": method.local.model_copy(update={"losses": (*method.local.losses, *losses), **changes})}
    )


def personal(method: NamedMethod, *losses: Loss) -> Stage:
    """Each site goes on by itself with a model of its own, which stays."""
    local = with_losses(method, *losses).local
    return Stage(name="personal", where="labelled", local=local, keep=named("all"), rounds=method.rounds)


def personalised(method: NamedMethod, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The same stages, with a model of each site's own that it uses only where it is better."""
    best = {"personalise": "best"}
    if any(stage.name == "personal" for stage in stages):
        return tuple(stage.model_copy(update=best if stage.name == "personal" else {}) for stage in stages)
    alone = personal(method).model_copy(update={"name": "alone", **best})
    if method.name != "probe_finetune":
        return alone, *stages
    # What weights from far away want, a site's own model wants too: it begins with the heads that all have solved.
    head, train, *rest = stages
    return head, alone.model_copy(update={"local": train.local}), train, *rest


def _halves(method: NamedMethod) -> tuple[int, int]:
    """The rounds in two parts, the first at least one."""
    first = max(1, method.rounds // 2)
    return first, max(1, method.rounds - first)


def lp_ft(method: NamedMethod) -> tuple[Stage, ...]:
    """Heads alone for half of the rounds, then all entries."""
    first, then = _halves(method)
    probe = rounds_of(method, "heads", train="heads").model_copy(update={"name": "probe", "rounds": first})
    return probe, rounds_of(method, "all").model_copy(update={"rounds": then})


def unfreezing(method: NamedMethod) -> tuple[Stage, ...]:
    """Heads first, then one more block every few rounds, and all entries at last."""
    parts = min(4, method.rounds)
    stages = []
    for at in range(parts):
        select = named("all") if at == parts - 1 else Select(max_height=at)
        rounds = method.rounds // parts + (at >= parts - method.rounds % parts)
        local = method.local.model_copy(update={"train": select})
        stages.append(
            rounds_of(method, "all").model_copy(update={"name": f"unfreeze_{at}", "local": local, "rounds": rounds})
        )
    return tuple(stages)


def fixbn(method: NamedMethod) -> tuple[Stage, ...]:
    """All entries; after half of the rounds norm statistics stay."""
    first, then = _halves(method)
    warm = rounds_of(method, "all").model_copy(update={"name": "warm_up", "rounds": first})
    fixed = rounds_of(with_losses(method, fixed_norm_stats=True), "all")
    return warm, fixed.model_copy(update={"name": "fixed", "rounds": then})


def probe_finetune(method: NamedMethod) -> tuple[Stage, ...]:
    """A ridge head first, so that gradients do not tear at the features; then all entries, norm statistics fixed."""
    fixed = method.local.model_copy(update={"fixed_norm_stats": True})
    return probe(method), rounds_of(method.model_copy(update={"local": fixed}), "all")


def adapted(method: NamedMethod, *losses: Loss) -> Stage:
    """Sites with labels or without learn the source's task on features that do not tell the two apart."""
    local = method.local.model_copy(update={"losses": losses})
    return rounds_of(method, "all").model_copy(update={"name": "adapt", "where": "all", "local": local})


def self_taught(method: NamedMethod, *losses: Loss) -> tuple[Stage, ...]:
    """FedAvg where there are labels; then each site goes on by itself, heads fixed, and keeps what that gives."""
    changes = {"losses": losses, "train": named("all_but_heads"), "rollback": Rollback()}
    local = method.local.model_copy(update=changes)
    adapting = Stage(name="adapt", local=local, keep=named("all_but_heads"), rounds=method.rounds)
    return rounds_of(method, "all"), adapting


def moment_alignment(method: NamedMethod) -> tuple[Stage, ...]:
    """Train on the source, release the moments of its features, and align the sites' features to them."""
    pretrain = rounds_of(method, "all").model_copy(update={"name": "pretrain", "where": "source"})
    released = Stage(name="release", where="source", local=Statistics(), aggregate=Moments())
    local = method.local.model_copy(
        update={"losses": (Discrepancy(measure="moments"),), "train": named("all_but_heads")}
    )
    align = rounds_of(method, "all_but_heads").model_copy(update={"name": "align", "where": "all", "local": local})
    return pretrain, released, align


def three_step(method: NamedMethod) -> tuple[Stage, ...]:
    """Train on the source, fine-tune at the sites that have labels, adapt to each site."""
    pretrain = rounds_of(method, "all").model_copy(update={"name": "pretrain", "where": "source"})
    return pretrain, rounds_of(method, "all").model_copy(update={"name": "finetune"}), adapt()


def maml(method: NamedMethod) -> tuple[Stage, ...]:
    """First-order MAML; counted in steps, as it must be."""
    steps = {} if method.local.steps else {"epochs": None, "steps": 5}
    return (rounds_of(with_losses(method, inner_steps=InnerSteps(), **steps), "all"),)


def probe(method: NamedMethod, aggregate: Ridge | NearestMean | Discriminant = _RIDGE) -> Stage:
    """A closed-form head on frozen features."""
    return Stage(
        name="probe",
        where="labelled",
        local=Statistics(private=method.sums, retain_statistics=method.retain_statistics),
        share=Select(roles=named("heads").roles),
        aggregate=aggregate,
    )


def logistic_probe() -> Stage:
    """Logistic heads on frozen features, by Newton's method from sums."""
    local, heads = Statistics(of="curvature"), Select(roles=named("heads").roles)
    return Stage(
        name="logistic", where="labelled", local=local, share=heads, aggregate=Logistic(), rounds=_NEWTON_STEPS
    )


def with_ood_detection(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The same with moments of the features, and a threshold, as soon as what all share is done.

    What sites then change by themselves, for themselves, is another model than the one that is described.
    """
    describe = Stage(name="describe", where="labelled", local=Statistics(), aggregate=Moments())
    measure = Stage(name="distances", where="labelled", local=Statistics(of="distances"), aggregate=Threshold())
    at = next(
        (at for at, stage in enumerate(stages) if stage.keep.roles - {Role.HEAD, Role.DOMAIN_DISCRIMINATOR}),
        len(stages),
    )
    return (*stages[:at], describe, measure, *stages[at:])


def adapt() -> Stage:
    """Norm statistics from each site's own images."""
    return Stage(name="adapt", local=Recalibrate(), keep=named("norm_stats"))


def harmonised() -> tuple[Stage, Stage]:
    """ComBat before any other stage: what is common to all from sites' sums, then at each site what is its own."""
    common = Stage(name="combat", local=Statistics(of="harmonisation"), aggregate=ComBat())
    return common, Stage(name="harmonise", local=Harmonise(), keep=named("site_effects"))


def standardise(private: PrivateSums | None = None) -> Stage:
    """The stage that a table without public numbers needs before any other: columns on one scale, from the sites'.

    Noised sums are over patients with labels alone, so they are asked of the sites that the other stages ask.
    """
    local = Statistics(of="columns", private=private)
    stage = Stage(name="standardise", local=local, aggregate=Standardise())
    return stage if private is None else stage.model_copy(update={"where": "labelled"})
