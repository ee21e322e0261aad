"""Which entries to train with differential privacy at a site of some size: as many as the noise lets learn.

With noise multiplier s, clip C, sample rate q and N patients, a step's noise has the length s C sqrt(d) / (q N) over d
trained entries, and the mean of N q gradients of at most C is no longer than C. Where the first is above the
second, steps lead mostly nowhere. On phantoms, sets with a ratio of up to 1 lost little to noise
(benchmarks/README.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedgraft.common.base.errors import InputError
from fedgraft.common.checks.check import only_heads_because
from fedgraft.common.config.suggest import instead
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Select,
    named,
)
from fedgraft.common.study.stages.training import Private
from fedgraft.common.study.study import Study
from fedgraft.simulations.planning.pricing import price, private_stages

SETS = ("heads", "norm_and_heads", "last_block", "all")
"""From few entries to many."""
ADAPTED = "adapters_and_heads"
"""What to train beside heads where the model has low-rank adapters."""

_LOUDEST = 1.0
_SMALL_SITE, _SMALL_EPSILON = 500, 3.0
"""With fewer patients, at an epsilon of at most this, heads alone learn."""


@dataclass(frozen=True)
class Option:
    """One set of entries, how many numbers it has, and its noise over the longest possible mean gradient."""

    train: str
    numbers: int
    noise: float


@dataclass(frozen=True)
class Advice:
    """What to train in a stage at sites of so many patients, and why; `options` are all there are."""

    stage: str
    patients: int
    train: str
    reason: str
    options: tuple[Option, ...]


def chosen(name: str, tags: Tags) -> Select:
    """A set of entries to train by its name; `last_block` is the deepest block of the backbone with the heads."""
    if name == "last_block":
        return Select(min_depth=max((tag.depth for tag in tags.values() if tag.role is not Role.HEAD), default=0))
    if name not in (*SETS, ADAPTED):
        raise InputError(f"No set of entries is called {name!r}{instead(name, (*SETS, ADAPTED))}.")
    return named(name)


def advise(study: Study, tags: Tags, sizes: Mapping[str, int], patients: int) -> Iterator[Advice]:
    """For every stage that trains privately, at the stage's own price for a site of so many `patients`.

    `sizes` are how many numbers each of the model's entries has.
    """
    lines = {line.stage: line for line in price(study, patients).lines}
    sets: tuple[str, ...] = SETS[:1] if only_heads_because(study.model.backbone) else SETS
    if study.model.adapters is not None:
        sets = ("heads", ADAPTED)
    for stage, private, _ in private_stages(study):
        if not isinstance(stage.local, Gradient) or not isinstance(private, Private):
            continue
        line = lines[stage.name]
        options: list[Option] = []
        for name in sets:
            numbers = sum(sizes[key] for key in chosen(name, tags).keys(tags) if _is_trained(tags, key))
            if not options or numbers > options[-1].numbers:  # a model without norm layers has no such set
                noise = line.noise_multiplier * math.sqrt(numbers) / (line.sample_rate * patients)
                options.append(Option(name, numbers, noise))
        yield Advice(stage.name, patients, *_best(options, patients, line.epsilon), tuple(options))


def _best(options: list[Option], patients: int, epsilon: float) -> tuple[str, str]:
    """The largest set whose noise is not too loud, and why it is that."""
    heads = options[0]
    if patients < _SMALL_SITE and epsilon <= _SMALL_EPSILON and len(options) > 1:
        return heads.train, f"with fewer than {_SMALL_SITE} patients, at epsilon {epsilon:.3g}, only heads learn"
    if heads.noise > _LOUDEST:
        why = f"even for heads a step's noise is {heads.noise:.2f} of the longest mean gradient: take larger lots"
        return heads.train, f"{why}, fewer steps, or larger sites"
    fits = [option for option in options if option.noise <= _LOUDEST]
    best, rest = fits[-1], options[len(fits) :]
    why = f"a step's noise is {best.noise:.2f} of the longest mean gradient"
    if rest:
        why += f"; with {rest[0].train} it would be {rest[0].noise:.2f}"
    elif len(options) == 1:
        why += "; of this backbone's other layers per-sample gradients are not known"
    return best.train, why


def _is_trained(tags: Tags, key: str) -> bool:
    """Statistics cannot be noised, and stay."""
    return tags[key].role not in (Role.NORM_STATS, Role.SCALE)
