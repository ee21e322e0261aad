"""Is the noise what the guarantee is computed from? Each check runs the site's trainer and measures what it releases.

The bounds are wide enough that sound code fails one in some thousand audits, and narrow enough for every known mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.attacks.attack_target import (
    NOW,
    AttackTarget,
    ExampleCases,
    light,
    loader_of,
    moved,
    released,
    shape,
    sizes,
)
from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.privacy.dp.gradients.trainer import CHANGE
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.simulations.audit.findings import AttackAttempt

NOBODY = 1e-9
"""A share of patients so small that no step sees any."""
_COORDINATES = 60_000
_FRESH_COORDINATES = 20_000
_PATIENTS = 12
_ERRORS = 6.0
"""Standard errors beyond which nothing is chance any more."""
_LOTS = 20
_STEPS = 1500
_MOST_CLASSES = 6
_NO_CLIP = 1e9


def noise_deviation(attack_target: AttackTarget) -> Measurement:
    """Noise on a sum to which patients add exactly nothing: deviation over the promised one, minus 1."""
    noise = _noise(attack_target.still, _COORDINATES)
    ratio = float(noise.std()) / _promised(attack_target)
    words = f"deviation {ratio:.4f} of what was promised, over {noise.numel():,} numbers"
    return Measurement(abs(ratio - 1), 0.02, words)


def noise_everywhere(attack_target: AttackTarget) -> Measurement:
    """The entry whose noise is furthest from mean 0 and the promised deviation, in standard errors."""
    noise = _noise(attack_target.still, _COORDINATES) / _promised(attack_target)
    worst = 0.0
    for part in torch.split(noise, sizes(attack_target, attack_target.local_model()), dim=1):
        count = part.numel()
        error = max(math.sqrt(1 / (2 * count)), 0.02 / _ERRORS)  # nobody profits from the rounding of large entries
        spread = abs(float((part**2).mean().sqrt()) - 1) / error
        worst = max(worst, spread, abs(float(part.mean())) * math.sqrt(count))
    return Measurement(worst, _ERRORS, f"the least well noised entry is off by {worst:.1f} standard errors")


def _promised(attack_target: AttackTarget) -> float:
    """The noise multiplier times the most that one unit changes a sum by: the clip, and a little for rounding."""
    return attack_target.noise_multiplier * attack_target.private.max_grad_norm * CHANGE


def noise_fresh(attack_target: AttackTarget) -> Measurement:
    """The largest correlation of noise with other noise, in standard errors: of steps, neighbours, halves, and runs.

    Both runs start with the same seeds of torch and NumPy, as a coordinator who sends a seed could have it.
    """
    with _seeded():
        one = _noise(attack_target.still, _FRESH_COORDINATES)
    with _seeded():
        other = _noise(attack_target.still, _FRESH_COORDINATES)
    flat, width = one.flatten(), one.shape[1]
    half = width // 2
    pairs = [(flat[:-width], flat[width:]), (flat[:-1], flat[1:]), (flat, other.flatten())]
    pairs += [(one[:, :half].flatten(), one[:, -half:].flatten())] if half else []
    worst = max(_correlation(a, b) * math.sqrt(len(a)) for a, b in pairs)
    return Measurement(worst, _ERRORS, f"the largest of {len(pairs)} correlations is {worst:.1f} standard errors")


def sensitivity(attack_target: AttackTarget) -> Measurement:
    """How much one patient changes a sum, over the clip: 20 random lots, and one per class in which all pull one way.

    The random lots are clipped hard. In the others the clip is the size of a gradient, so that whatever the patient
    does to the gradients of all others shows as well.
    """
    quiet = attack_target.still.asking({"steps": 1, "batch_size": 64}, {"sample_rate": 1.0, "noise_multiplier": 1e-9})
    local_model, worst = quiet.local_model(), 0.0
    for lot in range(_LOTS):
        worst = max(worst, _change(quiet, _random_lot(quiet, lot), local_model))
    for label in range(min(_MOST_CLASSES, max(quiet.study.heads.values()))):
        cases = _aligned_lot(quiet, label)
        alone = quiet.asking(None, {"max_grad_norm": _NO_CLIP, "noise_multiplier": 1e-9 / _NO_CLIP})
        size = float(released(alone, cases.only(torch.tensor([0])), local_model).norm())
        worst = max(worst, _change(quiet.asking(None, {"max_grad_norm": size or 1.0}), cases, local_model))
    return Measurement(
        worst, 1.001, f"one {attack_target.private.unit} more changes a sum by {worst:.4f} of the clip at most"
    )


def _change(attack_target: AttackTarget, cases: ExampleCases, local_model: LocalModel) -> float:
    """How much the sum is another without the patient "gone", over the clip; infinite if it is no number."""
    rest = torch.tensor([at for at, patient in enumerate(cases.patients) if patient != "gone"])
    change = float(
        (released(attack_target, cases, local_model) - released(attack_target, cases.only(rest), local_model)).norm()
    )
    return change / attack_target.private.max_grad_norm if math.isfinite(change) else math.inf


def sampler_spread(attack_target: AttackTarget) -> Measurement:
    """The variance of lots' sizes over that of independent coins, minus 1."""
    lots, q = _lots(attack_target), attack_target.private.sample_rate
    got, want = float(lots.sum(axis=1).var()), lots.shape[1] * q * (1 - q)
    words = f"variance {got:.2f}; independent coins have {want:.2f}"
    return Measurement(abs(got / want - 1) if want else got, 0.3, words)


def sampler_rates(attack_target: AttackTarget) -> Measurement:
    """The patient who comes too often or too rarely, and the mean of all, in standard errors."""
    lots, q = _lots(attack_target), attack_target.private.sample_rate
    error = math.sqrt(max(q * (1 - q), 1e-12) / len(lots))
    each = float(np.abs(lots.mean(axis=0) - q).max()) / error
    all_ = abs(float(lots.mean()) - q) / error * math.sqrt(lots.shape[1])
    return Measurement(max(each, all_), _ERRORS, f"rates are within {max(each, all_):.1f} standard errors of {q:g}")


def step_count(attack_target: AttackTarget) -> Measurement:
    """Releases taken and not announced, or announced and not taken, whoever comes."""
    cases = _people(light(attack_target, 1), _PATIENTS)
    wrong, announced = 0, 0
    for steps, sample_rate in (
        (attack_target.local.steps or 1, attack_target.private.sample_rate),
        (5, NOBODY),
        (3, 1.0),
    ):
        asked = light(attack_target, 1).asking({"steps": steps}, {"sample_rate": sample_rate})
        wrong += abs(len(released(asked, cases, asked.local_model())) - steps)
        announced += steps
    return Measurement(wrong, 0, f"{announced} releases were announced, and the count is off by {wrong}")


def frozen_entries(attack_target: AttackTarget) -> Measurement:
    """Entries that move and were not announced: running statistics, frozen layers."""
    local_model = attack_target.local_model()
    before = local_model.read(local_model.tags)
    cases = _people(attack_target, 4)
    asked = attack_target.asking({"steps": 2, "lr": 0.1, "augment": None}, {"sample_rate": 1.0})
    train_private(
        local_model, loader_of(attack_target.study, cases), cases.patients, asked.local, attack_target.changes, NOW
    )
    stray = len(moved(before, local_model.read(local_model.tags)) - set(attack_target.changes))
    others = len(local_model.tags) - len(attack_target.changes)
    return Measurement(stray, 0, f"{stray} of {others} entries that should stay have moved")


CHECKS: dict[str, tuple[str, Callable[[AttackTarget], Measurement]]] = {
    "noise": ("noise deviates by sigma times clip, to 2 %", noise_deviation),
    "noise of each entry": ("no entry has less noise than the others", noise_everywhere),
    "fresh noise": ("no noise comes twice, and no seed repeats it", noise_fresh),
    "sensitivity": ("one patient or image more changes a sum by at most the clip", sensitivity),
    "sizes of lots": ("lots vary as if every patient tossed a coin", sampler_spread),
    "rates of lots": ("every patient comes as often as was paid for", sampler_rates),
    "releases": ("as many releases as are charged to the ledger", step_count),
    "frozen entries": ("what is not trained does not move by a bit", frozen_entries),
}


def mechanism(attack_target: AttackTarget) -> list[AttackAttempt]:
    """One attempt for each of `CHECKS`, on one private stage."""
    return [
        AttackAttempt(attack_target.stage, name, claim, partial(measure, attack_target))
        for name, (claim, measure) in CHECKS.items()
    ]


def _noise(attack_target: AttackTarget, coordinates: int) -> Tensor:
    """At least so many numbers of pure noise, (steps, entries): patients come as they do, but all losses are 0."""
    local_model = attack_target.local_model()
    _certain(local_model)
    steps = max(2, math.ceil(coordinates / sum(sizes(attack_target, local_model))))
    people = _people(attack_target, _PATIENTS)
    content = ExampleCases(people.inputs, torch.zeros_like(people.labels), people.patients)
    return released(attack_target.asking({"steps": steps}), content, local_model)


def _certain(local_model: LocalModel) -> None:
    """Heads so sure of class 0 that cases of it have a gradient of exactly 0."""
    with torch.no_grad():
        for head in local_model.model.heads.values():
            for name, parameter in head.named_parameters():
                parameter.zero_()
                if name == "bias":
                    parameter[0] = 1e4


def _people(attack_target: AttackTarget, count: int) -> ExampleCases:
    """So many patients with one case each."""
    draw = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 2
    return ExampleCases(
        torch.randn(count, *shape(attack_target.study), generator=draw), labels, tuple(map(str, range(count)))
    )


def _random_lot(attack_target: AttackTarget, seed: int) -> ExampleCases:
    """Six cases of noise, of very different scale; the last patient has one to four of them, the largest."""
    draw = torch.Generator().manual_seed(seed)
    size = shape(attack_target.study)
    scale = 10 ** (torch.rand(6, *(1 for _ in size), generator=draw) * 4 - 1)
    scale[-1] = 1000
    own = 1 + seed % 4 if attack_target.private.unit == "patient" else 1
    inputs = torch.randn(6, *size, generator=draw) * scale
    labels = torch.randint(0, 1000, (6,), generator=draw)
    return ExampleCases(inputs, labels, (*map(str, range(6 - own)), *["gone"] * own))


def _aligned_lot(attack_target: AttackTarget, label: int) -> ExampleCases:
    """Ten times the same case, all of class 0 but the last; that is all of one patient."""
    one = torch.randn(1, *shape(attack_target.study), generator=torch.Generator().manual_seed(label))
    labels = torch.zeros(10, dtype=torch.long)
    labels[-1] = label
    return ExampleCases(one.expand(10, *one.shape[1:]).clone(), labels, (*map(str, range(9)), "gone"))


def _lots(attack_target: AttackTarget) -> np.ndarray:
    """Who came to which of so many steps, (steps, 40)."""
    small = light(attack_target, 1).asking({"steps": _STEPS, "lr": 0.0})
    local_model, people = small.local_model(), _people(small, 40)
    loader = loader_of(small.study, people)
    train_private(local_model, loader, people.patients, small.local, small.changes, NOW)
    lots = np.zeros((len(loader.asked), 40), dtype=bool)
    for lot, asked in zip(lots, loader.asked, strict=True):
        lot[asked] = True
    return lots


def _correlation(a: Tensor, b: Tensor) -> float:
    """The size of the correlation; 1 for what does not vary."""
    if float(a.std()) == 0 or float(b.std()) == 0:
        return 1.0
    return abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1]))


@contextmanager
def _seeded() -> Iterator[None]:
    """The global generators of torch and NumPy at the same place every time, and as they were afterwards."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(state)
