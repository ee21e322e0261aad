"""Noise in floating point: last digits tell nothing, since sums and noise lie on one grid whatever the sums are.

The attack is Mironov's (2012): which last digits a double can have depends on what the noise was added to. It is played
against the real code, and against sums and noise added as they come, where it must succeed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from fedgraft.client import privacy
from fedgraft.client.privacy.dp import dp_statistics, secret
from fedgraft.client.privacy.dp import noise as noising
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.privacy.dp.noise import Noises, granularity, noise, noised, noisy_mean, widened
from fedgraft.client.privacy.release import metric_release
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.protocol.instructions import NOISE
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.stages.private_sums import PrivateSums
from helpers.dp import private_work, trainable
from helpers.work import CPU, NOW, cohort, images

Mechanism = Callable[[NDArray[Any], float], NDArray[np.float64]]


def as_they_come(sums: NDArray[Any], deviation: float) -> NDArray[np.float64]:
    """What was done before: a double plus a double."""
    return sums + deviation * secret.normal(sums.size).reshape(sums.shape)


def odd_digits(seen: NDArray[np.float64]) -> float:
    """Of results in [1/4, 1/2), whose doubles are 2^-54 apart, the share of those that are odd multiples of it.

    A sum of 1 and a number in (-1, 0) has none: near 1 doubles are 2^-53 apart. A sum of 0 and a number has half.
    """
    band = seen[(seen >= 0.25) & (seen < 0.5)]
    return float(np.mean((band * 2.0**54) % 2 == 1))


@pytest.mark.parametrize("mechanism", [noised, as_they_come])
def test_last_digits_do_not_tell_whether_a_patient_is_there(mechanism: Mechanism) -> None:
    """With the patient the sum is 1, without it 0."""
    without, with_one = (odd_digits(mechanism(np.full(200_000, x), 1.0)) for x in (0.0, 1.0))
    assert with_one == 0.0
    assert (without == 0.0) == (mechanism is noised)
    assert mechanism is noised or without > 0.4, "the attack must work where there is something to find"


@pytest.mark.parametrize("safe", [True, False])
def test_nor_do_those_of_what_a_site_sends(monkeypatch: pytest.MonkeyPatch, safe: bool) -> None:
    """Sums of columns as a site sends them; the patient's value is the top of the range, or unknown."""
    if not safe:
        monkeypatch.setattr(dp_statistics, "noised", as_they_come)
    names = tuple(f"c{at}" for at in range(400))
    columns = TableInput(numeric=names, ranges=dict.fromkeys(names, (-1.0, 1.0)))
    private = PrivateSums(noise_multiplier=1 / dp_statistics.columns_bound(len(names)))
    told = []
    for value in (math.nan, 1.0):
        inputs = torch.full((1, len(names)), value)
        loader = Loader(cohort(images(1)[0], {"cls": torch.tensor([1])}), columns, CPU)
        loader._inputs = inputs
        sums = [dp_statistics.noised_columns(columns, loader, ["p"], private)["sum"] for _ in range(50)]
        told.append(odd_digits(np.concatenate(sums)))
    assert told[1] == 0.0
    assert (told[0] == 0.0) == safe


def test_neighbours_have_the_same_possible_results() -> None:
    """All whole multiples of the step, with all remainders alike, whatever the sum: nothing is left to tell by."""
    deviation, count = 3.7, 200_000  # chance fails sound noise once in some million runs, over all that is asserted
    step = granularity(deviation)
    for x in (0.0, 1.0, 1.0 + 2.0**-40, math.pi * 1e5, -1e-9):
        places = noised(np.full(count, x), deviation) / step
        assert np.array_equal(places, np.rint(places)), "off the grid"
        for bits in (1, 3, 6):
            counts = np.bincount((places % 2**bits).astype(int), minlength=2**bits)
            assert stats.chisquare(counts).pvalue > 1e-8, "a last digit that is likelier than others"
        assert (noised(np.full(count, x), deviation).mean() - x) == pytest.approx(
            0, abs=6 * deviation / math.sqrt(count)
        )


@pytest.mark.parametrize("size", [(3, 5), (400, 300)], ids=["few numbers", "many numbers"])
def test_steps_of_training_lie_on_the_grid(size: tuple[int, ...]) -> None:
    """Before the division, in double precision; single precision afterwards is post-processing."""
    total = [torch.rand(size, dtype=torch.float64) * 10, torch.rand(size[0], dtype=torch.float64)]
    noises = Noises(2.5, 3, 1.0)
    step = granularity(noises.deviation_of(sum(part.numel() for part in total)))
    for _ in range(3):
        for part in noisy_mean(total, noises, 1.0):
            assert torch.equal(part / step, (part / step).round())


def test_the_step_is_a_power_of_two_far_below_the_noise() -> None:
    for deviation in (1e-9, 0.3, 1.0, 1.999, 2.0, 1e6):
        share = granularity(deviation) / deviation
        assert 2.0**-25 < share <= 2.0**-24
        assert math.frexp(granularity(deviation))[0] == 0.5


@pytest.mark.parametrize(("multiplier", "numbers"), [(0.5, 1000), (4.0, 10_000), (50.0, 1_000_000)])
def test_what_rounding_adds_to_a_patients_change_is_in_the_noise(multiplier: float, numbers: int) -> None:
    """The worst there can be: every number of one neighbour is rounded up, and every one of the other down."""
    bound = 1.0
    deviation = widened(multiplier * bound, bound, numbers)
    step = granularity(deviation)
    below = np.full(numbers, 0.499) * step
    change = np.full(numbers, bound / math.sqrt(numbers) / step)
    change = (np.floor(change) + 0.002) * step  # just over the middle, and no longer than the bound
    assert np.linalg.norm(change) <= bound
    moved = step * np.linalg.norm(np.rint((below + change) / step) - np.rint(below / step))
    assert moved > np.linalg.norm(change) + 0.9 * step * math.sqrt(numbers), "rounding adds what it can"
    assert multiplier * moved <= deviation
    assert deviation < 1.01 * multiplier * bound


@pytest.mark.parametrize("exponent", [-140, -100, -65, -64, -63, -54, -24, 0, 23, 63, 64, 65, 100, 120])
def test_sums_in_single_precision_come_to_the_nearest_step_and_no_other(exponent: int) -> None:
    """Not only to one near it: what rounding moves a sum by is what the noise was widened for."""
    step, draw = 2.0**exponent, torch.Generator().manual_seed(0)
    shares = torch.cat([torch.randn(2000, generator=draw) * 2.0**far for far in (-30, -3, 0, 3, 30)])
    halves = torch.arange(-5, 6) + 0.5  # halfway goes to the even one, so that it is a rule and not a chance
    near = torch.cat([shares, halves]).double() * step
    smallest, largest = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
    odd = torch.tensor([0.0, smallest, smallest / 8, -smallest / 8, largest, -largest], dtype=torch.float64)
    sums = torch.cat([near, odd]).float()
    found = noising._in_steps(sums, step).double().numpy()
    exact = np.array([float(round(Fraction(x) / Fraction(step))) for x in sums.double().tolist() if math.isfinite(x)])
    finite = sums.isfinite().numpy()
    # Nothing that training sums comes near the ends, where a number is more steps than single precision counts.
    counted = np.abs(exact) < 2.0**127
    assert counted.sum() > 4000
    assert np.array_equal(found[finite][counted], exact[counted])
    assert not np.isnan(found[finite]).any()


def test_noise_that_hides_everything_is_refused() -> None:
    with pytest.raises(InputError, match="hides all they say"):
        widened(1e5, 1.0, 10**8)


def test_the_noise_is_normal_on_the_grid() -> None:
    """Chance fails sound noise once in some million runs, over all that is asserted."""
    drawn = noise(torch.zeros(800_000), 2.5).numpy() / 2.5
    assert stats.kstest(drawn, "norm").pvalue > 1e-7
    assert drawn.std() == pytest.approx(1.0, rel=0.006)
    for deviations in (1, 2, 3, 4):
        share = math.erfc(deviations / math.sqrt(2))
        assert np.mean(np.abs(drawn) > deviations) == pytest.approx(share, abs=6 * math.sqrt(share / len(drawn)))
    assert abs(np.corrcoef(drawn[::2], drawn[1::2])[0, 1]) < 0.01
    assert abs(np.corrcoef(drawn[:400_000], drawn[400_000:])[0, 1]) < 0.01


def test_the_tails_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rarest draws of all, by hand: the smallest number that the generator's bits stand for, and the largest.

    37 numbers are so many that some are worked on together and some alone.
    """
    for bits, most in ((0, math.sqrt(2 * 63 * math.log(2))), (-1, 0.0)):
        monkeypatch.setattr(secret.Words, "next", lambda words, bits=bits: words._words.fill_(bits))
        drawn = secret.normal(37)
        assert np.isfinite(drawn).all()
        assert np.hypot(drawn[0], drawn[19]) == pytest.approx(most)


def test_no_two_numbers_are_the_same_and_no_two_draws() -> None:
    """Pieces follow on each other in one stream: a stream begun anew for each would give the same noise again."""
    drawn = np.concatenate([secret.normal(100_000), secret.normal(100_000)])
    assert len(np.unique(drawn)) == len(drawn)


def test_everything_that_leaves_with_noise_goes_through_it() -> None:
    """Whoever adds noise in another way is found by name: the generator of normal numbers has one user."""
    root = Path(privacy.__file__).parent
    users = [path for path in root.rglob("*.py") if re.search(r"normals?\(", path.read_text(encoding="utf-8"))]
    assert sorted(path.relative_to(root).as_posix() for path in users) == ["dp/noise.py", "dp/secret.py"]
    assert metric_release.noised is dp_statistics.noised is noising.noised


def test_each_mechanism_widens_by_its_own_bound_and_for_all_that_it_sends(make_study, monkeypatch) -> None:
    """Work, sums of features and of columns, and counts of metrics: deviation over bound is the noise multiplier."""
    asked: list[tuple[float, int]] = []

    def recorded(deviation: float, bound: float, numbers: int) -> float:
        asked.append((deviation / bound, numbers))
        return widened(deviation, bound, numbers)

    for module in (noising, dp_statistics, metric_release):
        monkeypatch.setattr(module, "widened", recorded)
    study = make_study()
    inputs, labels = images(9)
    local_model = LocalModel(study, CPU)
    loader = Loader(cohort(inputs, {"cls": labels}), study.input, CPU)
    patients = [str(at) for at in range(9)]
    keys = [key for key in trainable(local_model) if key.startswith("heads.")]
    train_private(local_model, loader, patients, private_work(noise_multiplier=3.0, max_grad_norm=0.5), keys, NOW)
    assert set(asked) == {(3.0, 3 * 128 + 3)}
    asked.clear()
    seen = loader.through(torch.randn(9, 128))
    sums = dp_statistics.noised_sums(local_model, seen, patients, PrivateSums(noise_multiplier=3.0, max_norm=7.0))
    assert asked == [(pytest.approx(3.0), sum(array.size for key, array in sums.items() if key != NOISE))]
    asked.clear()
    columns = TableInput(numeric=("a", "b"), ranges={"a": (0, 1), "b": (0, 1)})
    table = Loader(cohort(inputs, {"cls": labels}), columns, CPU)
    table._inputs = torch.rand(9, 2)
    dp_statistics.noised_columns(columns, table, patients, PrivateSums(noise_multiplier=3.0))
    assert asked == [(pytest.approx(3.0), 6)]
    asked.clear()
    answers = {"cls": (np.random.default_rng(0).normal(size=(9, 3)), labels.numpy())}
    units = [[at] for at in range(9)]
    metric_release.noised_counts(answers, torch.arange(9), units, 3.0, study.tasks_by_name)
    assert asked == [(pytest.approx(3.0), 9 + 3 * 2 * metric_release.BINS)]
