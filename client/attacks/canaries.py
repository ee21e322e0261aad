"""How much can be told from one training run? A lower bound on epsilon that holds whatever the code does.

Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run": each of m canaries takes part or not by a
coin; whoever sees the trained model guesses which did. With (epsilon, delta)-DP, too many right guesses are unlikely.
A canary is a patient with a column of the table of its own, so that no other hides what it adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.client.attacks.attack_target import (
    NOW,
    AttackTarget,
    ExampleCases,
    light,
    loader_of,
)
from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.gradient import train
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.privacy.accountant import noise_for
from fedgraft.common.study.plan import Gradient

CANARIES = 2000
CLAIMS = (1.0, 4.0)
"""With so many canaries a bound cannot be above 6, so larger claims could not be refuted."""
DELTA = 1e-5
_VALUE = 100.0
"""A canary's own column: so large that all gradients are clipped, and its bias is a hundredth of them."""
_STEPS = 60
_GUESSES = (100, 200, 400, 800, CANARIES)
_CONFIDENCE = 0.95
_RUNS = 3
"""One run in 20 may refute a true claim by chance, so whoever keeps a promise looks as if not in one audit of 8,000."""
_RATE = 1e-3


@dataclass(frozen=True)
class Trial:
    """What the attacker sees of each canary, and what is to be told from it."""

    scores: NDArray[np.float64]
    took_part: NDArray[np.bool_]


def claimed(attack_target: AttackTarget, claim: float, seed: int) -> Measurement:
    """The bound for this stage's trainer, clip and lots, with the noise that `claim` costs at delta 1e-5."""
    noise_multiplier = noise_for(claim, DELTA, attack_target.private.sample_rate, _STEPS)
    bound = with_noise(attack_target, noise_multiplier, _STEPS, claim, seed)
    return Measurement(bound, claim, f"epsilon is at least {bound:.2f} (95 %), claimed are {claim:g}")


def with_noise(attack_target: AttackTarget, noise_multiplier: float, steps: int, claim: float, seed: int) -> float:
    """The lower bound on epsilon at delta `DELTA` after so many steps of so much noise; confirmed if above `claim`."""
    work = {"steps": steps, "lr": _RATE, "batch_size": CANARIES}
    small = light(attack_target, CANARIES).asking(work, {"noise_multiplier": noise_multiplier})

    def one_run(number: int) -> float:
        local_model, took_part = _blank(small), _coins(seed, number)
        cases = _canaries(took_part)
        train_private(local_model, loader_of(small.study, cases), cases.patients, small.local, small.changes, NOW)
        return lower_bound(Trial(_scores(local_model), took_part), DELTA)

    return confirmed(one_run, claim)


def confirmed(one_run: Callable[[int], float], claim: float) -> float:
    """The least bound of up to three runs: one above `claim` is made again with other coins and other noise."""
    least = math.inf
    for number in range(_RUNS):
        least = min(least, one_run(number))
        if least <= claim:
            break
    return least


def plain(attack_target: AttackTarget, seed: int) -> Measurement:
    """The same attack on training without privacy: if it finds nothing there, it says nothing anywhere."""
    small = light(attack_target, CANARIES)
    local_model, took_part = _blank(small), _coins(seed)
    spec = Gradient(epochs=1, batch_size=64, optimiser="sgd", momentum=0.0, lr=_RATE)
    train(local_model, loader_of(small.study, _canaries(took_part)), spec, small.changes, NOW)
    bound = lower_bound(Trial(_scores(local_model), took_part), DELTA)
    return Measurement(bound, 4.0, f"without privacy, epsilon is at least {bound:.2f} (95 %)", "at least")


def lower_bound(trial: Trial, delta: float) -> float:
    """The largest epsilon that is refuted with 95 % confidence, over all numbers of guesses together."""
    order = np.argsort(trial.scores, kind="stable")
    best = 0.0
    for guesses in _GUESSES:
        half = guesses // 2
        right = int(trial.took_part[order[-half:]].sum() + (~trial.took_part[order[:half]]).sum())
        chance = (1 - _CONFIDENCE) / len(_GUESSES)
        best = max(best, _refuted(len(order), 2 * half, right, delta, chance))
    return best


def chance_of(count: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """At most so likely are `right` or more of `guesses` among `count` canaries under (epsilon, delta)-DP.

    Theorem 5.2 of the paper, computed as in its appendix D.
    """
    from scipy.stats import binom  # a second to import, and only this bound needs it

    rate = 1 / (1 + math.exp(-epsilon))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, rate))
    alpha = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, float(binom.sf(right - 1, guesses, rate)) + 2 * count * delta * alpha)


def _refuted(count: int, guesses: int, right: int, delta: float, chance: float) -> float:
    low, high = 0.0, 20.0
    if chance_of(count, guesses, right, low, delta) > chance:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if chance_of(count, guesses, right, middle, delta) <= chance else (low, middle)
    return low


def _coins(seed: int, number: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng((seed, number)).random(CANARIES) < 0.5


def _canaries(took_part: NDArray[np.bool_]) -> ExampleCases:
    """Those who take part, each with its own column, and in turn of both classes."""
    here = np.flatnonzero(took_part)
    inputs = torch.zeros(len(here), CANARIES)
    inputs[torch.arange(len(here)), torch.from_numpy(here)] = _VALUE
    return ExampleCases(inputs, torch.from_numpy(here % 2), tuple(map(str, here.tolist())))


def _blank(attack_target: AttackTarget) -> LocalModel:
    """A model that knows nothing, so that all it shows was learnt."""
    local_model = attack_target.local_model()
    with torch.no_grad():
        for key in attack_target.changes:
            local_model.parameters[key].zero_()
    return local_model


def _scores(local_model: LocalModel) -> NDArray[np.float64]:
    """How far each canary's column leans to its class."""
    weight = local_model.parameters["heads.cls.weight"].detach().double().numpy()
    lean: NDArray[np.float64] = weight[1] - weight[0]
    return lean * np.where(np.arange(CANARIES) % 2, 1.0, -1.0)
