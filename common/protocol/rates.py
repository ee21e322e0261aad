"""Learning rates of a gradient stage, by entry and by moment: both sides can work out how far a site has stepped."""

from __future__ import annotations

import math

from fedgraft.common.study.plan import FRESH, Gradient, Tag


def rate_factor(spec: Gradient, progress: float) -> float:
    """Factor on the learning rate when `progress` (0 to 1) of the stage is done: linear warm-up, then the schedule."""
    if progress < spec.warmup:
        return progress / spec.warmup
    if spec.schedule == "constant":
        return 1.0
    left = (progress - spec.warmup) / (1 - spec.warmup)
    return 0.5 * (1 + math.cos(math.pi * left))


def rate_of(spec: Gradient, tag: Tag) -> float:
    """An entry's learning rate before any schedule."""
    if tag.role in FRESH:
        return spec.lr
    rate = spec.lr * spec.backbone_lr_factor
    return rate if spec.layer_decay == 1 else rate * spec.layer_decay**tag.height


def stepped(spec: Gradient, tag: Tag, number: int, rounds: int) -> float:
    """Sum of an entry's rates over the steps of round `number` of `rounds`, counted from 1. Needs `spec.steps`."""
    steps = spec.steps or 0
    factors = (rate_factor(spec, (number - 1 + step / steps) / rounds) for step in range(steps))
    return rate_of(spec, tag) * sum(factors)
