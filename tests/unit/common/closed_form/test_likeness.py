"""Sites that are alike, from sums: against the cases themselves."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.closed_form.likeness import SiteSums, apart, clustered, partitions


def cases(rng: np.random.Generator, count: int, shift: float, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Six features whose means differ by class, and by site; one that never varies."""
    y = (rng.uniform(size=count) < share).astype(int)
    f = rng.normal(size=(count, 6)) * np.arange(1, 7) + 3.0 * y[:, None] * np.arange(1, 7) + shift * np.arange(1, 7)
    return np.hstack([f, np.full((count, 1), 2.0)]), y


def sums(f: np.ndarray, y: np.ndarray) -> SiteSums:
    z = np.hstack([f, np.ones((len(f), 1))])
    return SiteSums(z.T @ z, z.T @ np.eye(2)[y])


def plain(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """The root mean square, over classes by their cases and over features, from the cases themselves."""
    within = [np.vstack([f[y == c] - f[y == c].mean(0) for c in (0, 1)]) for f, y in (one, other)]
    spread = np.sqrt(sum((own**2).sum(0) / len(own) for own in within) / 2)[:6]
    squares, weights = [], []
    for c in (0, 1):
        (f, y), (g, x) = one, other
        step = (f[y == c].mean(0) - g[x == c].mean(0))[:6] / spread
        squares.append((step**2).mean())
        weights.append(1 / (1 / (y == c).sum() + 1 / (x == c).sum()))
    return float(np.sqrt(np.average(squares, weights=weights)))


def test_distances_are_those_of_the_cases() -> None:
    rng = np.random.default_rng(0)
    one, other = cases(rng, 80, 0.0), cases(rng, 50, 0.7)
    found = apart("a", "b", {"a": sums(*one), "b": sums(*other)})
    assert found.distance == pytest.approx(plain(one, other), rel=1e-9)
    assert found.differs


def test_chance_alone_is_what_is_said_of_it() -> None:
    """Two hundred pairs of sites of one kind: the distance is as far as chance puts them, and few differ."""
    rng = np.random.default_rng(1)
    pairs = [apart("a", "b", {"a": sums(*cases(rng, 80, 0)), "b": sums(*cases(rng, 40, 0))}) for _ in range(200)]
    assert np.mean([one.excess for one in pairs]) == pytest.approx(0, abs=0.01)  # chance alone is .075
    assert sum(one.differs for one in pairs) <= 4


def test_more_of_one_class_makes_no_other_site() -> None:
    rng = np.random.default_rng(2)
    few, many = sums(*cases(rng, 400, 0.0, 0.2)), sums(*cases(rng, 400, 0.0, 0.8))
    assert not apart("a", "b", {"a": few, "b": many}).differs
    blind = {name: SiteSums(own.gram) for name, own in {"a": few, "b": many}.items()}
    assert apart("a", "b", blind).differs  # without the labels it would


def test_sites_of_a_kind_come_together_and_nobody_else() -> None:
    rng = np.random.default_rng(3)
    found = {
        f"{kind}{number}": sums(*cases(rng, 60 + 10 * number, shift))
        for kind, shift in (("x", 0.0), ("y", 1.0), ("z", 2.5))
        for number in range(3)
    }
    kinds = tuple(tuple(f"{kind}{number}" for number in range(3)) for kind in "xyz")
    assert clustered(found) == kinds
    assert clustered(found, 2) == (tuple(sorted(kinds[0] + kinds[1])), kinds[2])
    assert [len(partition) for partition, _ in partitions(found)] == list(range(9, 0, -1))
    assert clustered({name: found[name] for name in kinds[0]}) == (kinds[0],)


def test_many_cases_do_not_make_a_small_difference_worth_a_model() -> None:
    rng = np.random.default_rng(4)
    found = {"a": sums(*cases(rng, 5000, 0.0)), "b": sums(*cases(rng, 5000, 0.2))}
    assert apart("a", "b", found).differs
    assert clustered(found) == (("a", "b"),)


def test_distance_is_small_for_samples_alike_and_grows_with_the_shift() -> None:
    rng = np.random.default_rng(0)
    one, other, far = rng.normal(size=(200, 30)), rng.normal(size=(300, 30)), rng.normal(2.0, 1.0, size=(300, 30))
    found = {
        name: SiteSums(sums(part, np.zeros(len(part), int)).gram)
        for name, part in zip("abc", (one, other, far), strict=True)
    }
    assert apart("a", "b", found).distance == pytest.approx(np.sqrt(1 / 200 + 1 / 300), rel=0.3)
    assert apart("a", "c", found).distance == pytest.approx(2.0, rel=0.1)
    assert apart("a", "a", found).distance == 0
    empty = {name: SiteSums(np.zeros((3, 3))) for name in "ab"}
    assert apart("a", "b", empty).distance == 0


def test_sites_with_no_class_in_common_are_compared_all_the_same() -> None:
    rng = np.random.default_rng(5)
    first, second = cases(rng, 100, 0.0, 0.0), cases(rng, 100, 0.0, 1.0)
    assert apart("a", "b", {"a": sums(*first), "b": sums(*second)}).distance == pytest.approx(3.0, rel=0.1)
