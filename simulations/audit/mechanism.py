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

from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.model.local_model import Workbench
from fedgraft.simulations.audit.attack_target import (
    NOW,
    Cases,
    Desk,
    feed_of,
    light,
    moved,
    released,
    shape,
    sizes,
)
from fedgraft.simulations.audit.findings import Attempt, Measured

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


def noise_deviation(desk: Desk) -> Measured:
    """Noise on a sum to which patients add exactly nothing: deviation over sigma times clip, minus 1."""
    noise = _noise(desk.still, _COORDINATES)
    ratio = float(noise.std()) / (desk.sigma * desk.private.clip)
    words = f"deviation {ratio:.4f} of what was promised, over {noise.numel():,} numbers"
    return Measured(abs(ratio - 1), 0.02, words)


def noise_everywhere(desk: Desk) -> Measured:
    """The entry whose noise is furthest from mean 0 and the promised deviation, in standard errors."""
    noise = _noise(desk.still, _COORDINATES) / (desk.sigma * desk.private.clip)
    worst = 0.0
    for part in torch.split(noise, sizes(desk, desk.bench()), dim=1):
        count = part.numel()
        error = max(math.sqrt(1 / (2 * count)), 0.02 / _ERRORS)  # nobody profits from the rounding of large entries
        spread = abs(float((part**2).mean().sqrt()) - 1) / error
        worst = max(worst, spread, abs(float(part.mean())) * math.sqrt(count))
    return Measured(worst, _ERRORS, f"the least well noised entry is off by {worst:.1f} standard errors")


def noise_fresh(desk: Desk) -> Measured:
    """The largest correlation of noise with other noise, in standard errors: of steps, neighbours, halves, and runs.

    Both runs start with the same seeds of torch and NumPy, as a coordinator who sends a seed could have it.
    """
    with _seeded():
        one = _noise(desk.still, _FRESH_COORDINATES)
    with _seeded():
        other = _noise(desk.still, _FRESH_COORDINATES)
    flat, width = one.flatten(), one.shape[1]
    half = width // 2
    pairs = [(flat[:-width], flat[width:]), (flat[:-1], flat[1:]), (flat, other.flatten())]
    pairs += [(one[:, :half].flatten(), one[:, -half:].flatten())] if half else []
    worst = max(_correlation(a, b) * math.sqrt(len(a)) for a, b in pairs)
    return Measured(worst, _ERRORS, f"the largest of {len(pairs)} correlations is {worst:.1f} standard errors")


def sensitivity(desk: Desk) -> Measured:
    """How much one patient changes a sum, over the clip: 20 random lots, and one per class in which all pull one way.

    The random lots are clipped hard. In the others the clip is the size of a gradient, so that whatever the patient
    does to the gradients of all others shows as well.
    """
    quiet = desk.still.asking({"steps": 1, "batch_size": 64}, {"sample": 1.0, "sigma": 1e-9})
    bench, worst = quiet.bench(), 0.0
    for lot in range(_LOTS):
        worst = max(worst, _change(quiet, _random_lot(quiet, lot), bench))
    for label in range(min(_MOST_CLASSES, max(quiet.study.heads.values()))):
        cases = _aligned_lot(quiet, label)
        alone = quiet.asking(None, {"clip": _NO_CLIP, "sigma": 1e-9 / _NO_CLIP})
        size = float(released(alone, cases.only(torch.tensor([0])), bench).norm())
        worst = max(worst, _change(quiet.asking(None, {"clip": size or 1.0}), cases, bench))
    return Measured(worst, 1.001, f"one {desk.private.unit} more changes a sum by {worst:.4f} of the clip at most")


def _change(desk: Desk, cases: Cases, bench: Workbench) -> float:
    """How much the sum is another without the patient "gone", over the clip; infinite if it is no number."""
    rest = torch.tensor([at for at, patient in enumerate(cases.patients) if patient != "gone"])
    change = float((released(desk, cases, bench) - released(desk, cases.only(rest), bench)).norm())
    return change / desk.private.clip if math.isfinite(change) else math.inf


def sampler_spread(desk: Desk) -> Measured:
    """The variance of lots' sizes over that of independent coins, minus 1."""
    lots, q = _lots(desk), desk.private.sample
    got, want = float(lots.sum(axis=1).var()), lots.shape[1] * q * (1 - q)
    words = f"variance {got:.2f}; independent coins have {want:.2f}"
    return Measured(abs(got / want - 1) if want else got, 0.3, words)


def sampler_rates(desk: Desk) -> Measured:
    """The patient who comes too often or too rarely, and the mean of all, in standard errors."""
    lots, q = _lots(desk), desk.private.sample
    error = math.sqrt(max(q * (1 - q), 1e-12) / len(lots))
    each = float(np.abs(lots.mean(axis=0) - q).max()) / error
    all_ = abs(float(lots.mean()) - q) / error * math.sqrt(lots.shape[1])
    return Measured(max(each, all_), _ERRORS, f"rates are within {max(each, all_):.1f} standard errors of {q:g}")


def step_count(desk: Desk) -> Measured:
    """Releases taken and not announced, or announced and not taken, whoever comes."""
    cases = _people(light(desk, 1), _PATIENTS)
    wrong, announced = 0, 0
    for steps, sample in ((desk.local.steps or 1, desk.private.sample), (5, NOBODY), (3, 1.0)):
        asked = light(desk, 1).asking({"steps": steps}, {"sample": sample})
        wrong += abs(len(released(asked, cases, asked.bench())) - steps)
        announced += steps
    return Measured(wrong, 0, f"{announced} releases were announced, and the count is off by {wrong}")


def frozen_entries(desk: Desk) -> Measured:
    """Entries that move and were not announced: running statistics, frozen layers."""
    bench = desk.bench()
    before = bench.read(bench.tags)
    cases = _people(desk, 4)
    asked = desk.asking({"steps": 2, "lr": 0.1, "augment": None}, {"sample": 1.0})
    train_private(bench, feed_of(desk.study, cases), cases.patients, asked.local, desk.changes, NOW)
    stray = len(moved(before, bench.read(bench.tags)) - set(desk.changes))
    others = len(bench.tags) - len(desk.changes)
    return Measured(stray, 0, f"{stray} of {others} entries that should stay have moved")


CHECKS: dict[str, tuple[str, Callable[[Desk], Measured]]] = {
    "noise": ("noise deviates by sigma times clip, to 2 %", noise_deviation),
    "noise of each entry": ("no entry has less noise than the others", noise_everywhere),
    "fresh noise": ("no noise comes twice, and no seed repeats it", noise_fresh),
    "sensitivity": ("one patient or image more changes a sum by at most the clip", sensitivity),
    "sizes of lots": ("lots vary as if every patient tossed a coin", sampler_spread),
    "rates of lots": ("every patient comes as often as was paid for", sampler_rates),
    "releases": ("as many releases as are charged to the ledger", step_count),
    "frozen entries": ("what is not trained does not move by a bit", frozen_entries),
}


def mechanism(desk: Desk) -> list[Attempt]:
    """All checks of one private stage."""
    return [Attempt(desk.stage, name, claim, partial(measure, desk)) for name, (claim, measure) in CHECKS.items()]


def _noise(desk: Desk, coordinates: int) -> Tensor:
    """At least so many numbers of pure noise, (steps, entries): patients come as they do, but all losses are 0."""
    bench = desk.bench()
    _certain(bench)
    steps = max(2, math.ceil(coordinates / sum(sizes(desk, bench))))
    people = _people(desk, _PATIENTS)
    content = Cases(people.inputs, torch.zeros_like(people.labels), people.patients)
    return released(desk.asking({"steps": steps}), content, bench)


def _certain(bench: Workbench) -> None:
    """Heads so sure of class 0 that cases of it have a gradient of exactly 0."""
    with torch.no_grad():
        for head in bench.model.heads.values():
            for name, parameter in head.named_parameters():
                parameter.zero_()
                if name == "bias":
                    parameter[0] = 1e4


def _people(desk: Desk, count: int) -> Cases:
    """So many patients with one case each."""
    draw = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 2
    return Cases(torch.randn(count, *shape(desk.study), generator=draw), labels, tuple(map(str, range(count))))


def _random_lot(desk: Desk, seed: int) -> Cases:
    """Six cases of noise, of very different scale; the last patient has one to four of them, the largest."""
    draw = torch.Generator().manual_seed(seed)
    size = shape(desk.study)
    scale = 10 ** (torch.rand(6, *(1 for _ in size), generator=draw) * 4 - 1)
    scale[-1] = 1000
    own = 1 + seed % 4 if desk.private.unit == "patient" else 1
    inputs = torch.randn(6, *size, generator=draw) * scale
    labels = torch.randint(0, 1000, (6,), generator=draw)
    return Cases(inputs, labels, (*map(str, range(6 - own)), *["gone"] * own))


def _aligned_lot(desk: Desk, label: int) -> Cases:
    """Ten times the same case, all of class 0 but the last; that is all of one patient."""
    one = torch.randn(1, *shape(desk.study), generator=torch.Generator().manual_seed(label))
    labels = torch.zeros(10, dtype=torch.long)
    labels[-1] = label
    return Cases(one.expand(10, *one.shape[1:]).clone(), labels, (*map(str, range(9)), "gone"))


def _lots(desk: Desk) -> np.ndarray:
    """Who came to which of so many steps, (steps, 40)."""
    small = light(desk, 1).asking({"steps": _STEPS, "lr": 0.0})
    bench, people = small.bench(), _people(small, 40)
    feed = feed_of(small.study, people)
    train_private(bench, feed, people.patients, small.local, small.changes, NOW)
    lots = np.zeros((len(feed.asked), 40), dtype=bool)
    for lot, asked in zip(lots, feed.asked, strict=True):
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
