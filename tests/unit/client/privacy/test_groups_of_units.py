"""A private step's units in groups: all of them, whole, and no group of a few that are over."""

from __future__ import annotations

import pytest
import torch

from fedgraft.client.privacy.dp.units import Rows


def rows(cases: list[int]) -> Rows:
    """Units with so many cases each."""
    unit = torch.repeat_interleave(torch.arange(len(cases)), torch.tensor(cases, dtype=torch.int64))
    return Rows(torch.arange(len(unit)) + 100, unit, len(cases))


@pytest.mark.parametrize(
    ("drawn", "sizes"),
    [
        (0, []),
        (1, [1]),
        (32, [32]),
        (35, [35]),
        (40, [40]),
        (41, [21, 20]),
        (64, [32, 32]),
        (72, [36, 36]),
        (73, [25, 25, 23]),
    ],
)
def test_a_few_that_are_over_join_the_group(drawn: int, sizes: list[int]) -> None:
    assert [len(group.indices) for group in rows([1] * drawn).chunks(32)] == sizes


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 32])
def test_groups_hold_whole_units_all_of_them_and_at_most_a_quarter_more(size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    for _ in range(50):
        count = int(torch.randint(0, 30, (), generator=draw))
        cases = torch.randint(1, 6, (count,), generator=draw).tolist()
        groups = list(rows(cases).chunks(size))
        assert sum(group.units for group in groups) == count
        assert torch.cat([torch.empty(0, dtype=torch.int64), *(group.indices for group in groups)]).tolist() == [
            *range(100, 100 + sum(cases))
        ]
        for group in groups:
            assert len(group.indices) <= 1.25 * size or group.units == 1
            assert torch.equal(group.unit.unique(), torch.arange(group.units))


def test_a_unit_without_a_case_is_in_a_group_as_well() -> None:
    empty = Rows(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 2)
    assert [group.units for group in empty.chunks(8)] == [2]
